"""Manifests: files that submit a run to a scheduler, made from the configuration of the run. All of them start it with
`pangu launch`."""
