"""Sends containers' logs on to syslog, journald, GELF and fluentd, in a process of its own."""
