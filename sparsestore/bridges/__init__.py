"""One framework a file. Each imports its framework plainly at the top; the store imports the file when asked to."""
