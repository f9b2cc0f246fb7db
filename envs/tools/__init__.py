"""Tools of a white-box agent, over a sandbox: `bash, python, read, write, edit, search, submit`."""
