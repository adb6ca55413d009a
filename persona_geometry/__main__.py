"""`python -m persona_geometry`: the command line, for launchers that start a module, such as torchrun."""

from persona_geometry.commands import main

if __name__ == "__main__":
    main()
