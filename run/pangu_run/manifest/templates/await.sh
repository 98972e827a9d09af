# A trapped signal interrupts `wait`, whose result is then not the child's.
while signalled=; wait "$child"; code=$?; [[ $signalled ]]; do :; done
