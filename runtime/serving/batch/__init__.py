"""Many pictures: rows in, answers out, each exactly once, on one machine or a cluster."""
