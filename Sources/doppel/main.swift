// As `mount.fuse.doppel` or `mount.doppel`, mount(8) calls with its own order of arguments.
// Nothing here may form a C callback: this file's code belongs to the main actor.
StartUp.run(CommandLine.arguments)
