"""Read the text of a job file as a `Job`: YAML, `${}`, paths, and errors with their line.

Begin with `loader.py`. `yaml_reader.py` limits what a file may demand of the parser.
"""
