"""Labels of four kinds, from folder names, a table or a folder of masks; and who trains on which of them."""
