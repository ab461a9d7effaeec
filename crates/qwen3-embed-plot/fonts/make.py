"""Makes cjk.otf: Noto Sans CJK Regular (SIL Open Font License, OFL.txt) with fewer characters.

    pip install fonttools
    python make.py NotoSansCJK-Regular.ttc

The font has the characters of the national standards GB 2312, JIS X 0208, KS X 1001 and of level 1 of Big5, and the Latin,
Greek and Cyrillic letters that the font has. NotoSansCJK-Regular.ttc is in the Debian package fonts-noto-cjk (1:20220127+repack1-1).
"""

import subprocess
import sys


def two_byte_characters(encoding, first_bytes, second_bytes):
    """The characters that an encoding has for two bytes in these ranges."""
    codes = (bytes([first, second]) for first in first_bytes for second in second_bytes)
    return {character for code in codes for character in code.decode(encoding, "ignore")}


HIGH = range(0xA1, 0xFF)
BIG5_SECOND = [*range(0x40, 0x7F), *HIGH]
BLOCKS = [(0x20, 0x7F), (0xA0, 0x250), (0x1E00, 0x1F00), (0x370, 0x530), (0x2010, 0x2050), (0x3000, 0x3100), (0xFF00, 0xFFF0)]

characters = two_byte_characters("gb2312", HIGH, HIGH)
characters |= two_byte_characters("euc_jp", HIGH, HIGH)
characters |= two_byte_characters("euc_kr", HIGH, HIGH)
characters |= two_byte_characters("big5", range(0xA4, 0xC7), BIG5_SECOND)
characters |= {chr(code) for start, end in BLOCKS for code in range(start, end)}
with open("cjk.txt", "w") as file:
    file.write("".join(sorted(characters)))
arguments = ["--font-number=0", "--text-file=cjk.txt", "--output-file=cjk.otf", "--no-hinting", "--layout-features="]
subprocess.run(["pyftsubset", sys.argv[1], *arguments, "--name-IDs=0,1,2,4,6,13,14"], check=True)
