"""What each event does. A reaction is a plain function ``(state, event, out)`` in the file of its subject."""
