"""What every command needs: the output folder, units of work through Ray Data, pages."""
