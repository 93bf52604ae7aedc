"""`python -m llm_blender_ray`: the `blend` command."""

from llm_blender_ray.pipelines.__main__ import main

if __name__ == "__main__":
    main()
