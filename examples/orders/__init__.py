"""Orders that wait for an approval, mails that are jobs, and a report each night: what survives its process."""
