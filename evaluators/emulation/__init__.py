"""An arm64 machine under qemu, kept in a cache folder: how it is set up, its CPU profiles, and how a process is started there."""
