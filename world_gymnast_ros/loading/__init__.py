"""From what a folder holds to the class that reads it; the only room that names concrete models of every kind."""
