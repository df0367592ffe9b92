"""What every room needs: errors, files, locks, the machine, several processes."""
