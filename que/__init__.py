"""The que: overnight jobs that survive anything. `python -m que --help`; que/README.md has the tour."""
