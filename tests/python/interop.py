"""The other side of tests/format/python_interop.rs: Cobblestone-256 of the package `cryptography`.

  interop.py open CASES   opens each case's message file and writes its plain file
  interop.py seal CASES   seals each case's plain file into its message file

CASES is a JSON list of {key, context, plain, message}: two hex strings and two paths.
"""

import json
import sys

from cryptography.cobblestone import Cobblestone256Decryptor, Cobblestone256Encryptor


def main():
    verb, cases = sys.argv[1], sys.argv[2]
    with open(cases) as file:
        cases = json.load(file)
    for case in cases:
        key, context = bytes.fromhex(case["key"]), bytes.fromhex(case["context"])
        opening = verb == "open"
        source, target = (case["message"], case["plain"])[:: 1 if opening else -1]
        engine = (Cobblestone256Decryptor if opening else Cobblestone256Encryptor)(key, context)
        with open(source, "rb") as file:
            data = file.read()
        with open(target, "wb") as file:
            # In uneven pieces, so that the streaming of the other side is exercised too.
            for start in range(0, len(data), 10_007):
                file.write(engine.update(data[start : start + 10_007]))
            file.write(engine.finalize())


if __name__ == "__main__":
    main()
