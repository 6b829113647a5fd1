"""Which stages can a recipe name? Every file here is one: the file's name is the stage's name."""
