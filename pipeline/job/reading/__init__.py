"""From the text of a job file to a `Job`: YAML, `${}`, paths, errors with their line.

Begin with `loader.py`. `yaml_reader.py` bounds what a file may ask of the parser.
"""
