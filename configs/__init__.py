"""Settings as data: the schema of every config (`schema`), how one is read (`loading`), and YAML presets."""
