"""The `blend` command, also `python -m llm_blender_ray`: signal handlers first, then slow imports."""

from llm_blender_ray.pipelines.interruption import install


def main() -> None:
    """Entry point."""
    install()
    from llm_blender_ray.pipelines.cli.commands import main as command

    command()


if __name__ == "__main__":
    main()
