"""The HTTP server: users, usage log, stored responses, and the APIs that clients know."""
