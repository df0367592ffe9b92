"""What ``bin/cache`` does: caches and their files in; lists, findings, copies and clean folders out."""
