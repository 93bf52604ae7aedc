"""The `blend` command, also as `python -m pipelines`: signals first, then everything that takes time to import."""

from llm_blender_ray.pipelines.interruption import install


def main() -> None:
    """Entry point."""
    install()
    from llm_blender_ray.pipelines.cli.commands import main as command

    command()


if __name__ == "__main__":
    main()
