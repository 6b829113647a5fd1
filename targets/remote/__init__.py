"""Remote access to a board: SSH, the agent's archive and options, received files."""
