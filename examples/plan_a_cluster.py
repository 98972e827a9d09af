"""How a model fits a cluster that is not here: memory of a card, time of a step, and the fastest plans. Neither a
device nor MindSpore is needed.

    python examples/plan_a_cluster.py [CONFIG [DEVICES [overrides]]]
"""

import sys

from pangu_ms import load_config, plan, search_plans
from pangu_ms.core.console import guarded
from pangu_ms.planner.cluster import GIB
from pangu_ms.planner.estimate import overrides


def main(argv: list[str]) -> list[str]:
    """Print the prediction for the configuration's own plan and the search; returns the best plan's overrides."""
    name, devices = argv[0] if argv else "alpha/13b_64x32gib", int(argv[1]) if argv[1:] else 64
    config = load_config(name, argv[2:])

    estimate = plan(config)
    print(f"{name} as it is, on {estimate.plan.mesh.world} card(s):")
    for line in estimate.memory[estimate.worst_stage]:
        print(f"  {line.name:<20} {line.bytes / GIB:8.2f} GiB")
    room = f"{-estimate.excess / GIB:.2f} GiB are left" if estimate.excess <= 0 else "does not fit"
    print(f"  {'total':<20} {estimate.bytes / GIB:8.2f} GiB of {estimate.hbm_bytes / GIB:g}: {room}")
    for term in estimate.terms:
        print(f"  {term.name:<20} {term.seconds * 1e3:8.1f} ms")
    print(f"  {estimate.tokens_per_second_per_device:,.0f} tokens/s per card, MFU {estimate.mfu:.1%}\n")

    found = search_plans(config, devices)
    print(f"the fastest of {found.fitting} plans that fit {devices} cards ({found.tried} tried):")
    for best in found.ranked[:3]:
        parallel = best.plan.config.parallel
        degrees = f"dp {parallel.data_parallel}, mp {parallel.model_parallel}, pp {parallel.pipeline_stage}"
        print(f"  {degrees}: {best.bytes / GIB:.1f} GiB, {best.tokens_per_second_per_device:,.0f} tokens/s per card")
    pasted = overrides(found.ranked[0].plan.config)
    print("to train so:", " ".join(pasted))
    return pasted


def command() -> int:
    """The program: a mistake is one line and exit code 2."""
    main(sys.argv[1:])
    return 0


if __name__ == "__main__":
    sys.exit(guarded("plan_a_cluster.py", command))
