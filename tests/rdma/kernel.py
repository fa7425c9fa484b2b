"""Takes apart what would cost an emulated machine seconds: the kernel's compression, and the modules' signatures.

kernel.py unpack VMLINUZ VMLINUX
kernel.py unsign MODULE...
"""

import lzma
import struct
import subprocess
import sys
import zlib

SIGNED = b"~Module signature appended~\n"


def unpack(source, target):
    image = open(source, "rb").read()
    # The x86 boot protocol: sectors of the real-mode part, and where behind it the compressed kernel lies.
    sectors = (image[0x1F1] or 4) + 1
    offset, length = struct.unpack_from("<II", image, 0x248)
    packed = image[sectors * 512 + offset :][:length]
    if packed.startswith(b"\xfd7zXZ\0"):
        kernel = lzma.LZMADecompressor().decompress(packed)
    elif packed.startswith(b"\x28\xb5\x2f\xfd"):
        kernel = subprocess.run(["zstd", "-dc"], input=packed[:-4], capture_output=True, check=True).stdout
    elif packed.startswith(b"\x1f\x8b"):
        kernel = zlib.decompressobj(31).decompress(packed)
    else:
        sys.exit(f"kernel.py: {source}: a compression that is not known")
    if not kernel.startswith(b"\x7fELF"):
        sys.exit(f"kernel.py: {source}: no ELF kernel in it")
    open(target, "wb").write(kernel)


def unsign(modules):
    for name in modules:
        module = open(name, "rb").read()
        if module.endswith(SIGNED):
            (length,) = struct.unpack(">I", module[-len(SIGNED) - 4 : -len(SIGNED)])
            open(name, "wb").write(module[: -len(SIGNED) - 12 - length])


if sys.argv[1] == "unpack":
    unpack(*sys.argv[2:])
else:
    unsign(sys.argv[2:])
