"""What the tables of the paper's experiments share: sets, rows, trainings, folders of results."""
