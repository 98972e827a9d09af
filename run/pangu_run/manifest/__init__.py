"""`pangu manifest`: files that hand a run to a scheduler, filled from its configuration. All of them start it with
`pangu launch`."""
