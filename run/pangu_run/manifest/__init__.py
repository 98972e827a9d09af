"""Files that hand a run to a scheduler, filled in from its configuration. All of them start it with `pangu launch`."""
