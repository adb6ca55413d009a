"""The study's stages: what each asks and computes, and the run that puts them together."""
