"""Tools of the developers: measuring, fuzzing, the README."""
