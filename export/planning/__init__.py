"""Options of an export, and the plan of what it writes."""
