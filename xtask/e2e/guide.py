"""The Python code in the guide. All of it is compiled, and the code for the openai package is run against the server."""

import re

from expect import ADDRESS, FIXTURES, MODEL

ROOT = FIXTURES.parent
n_run = 0
for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
    for code in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        compile(code, str(page), "exec")
        if "from openai import" not in code:
            continue
        code, n_urls = re.subn(r"http://127\.0\.0\.1:30000", ADDRESS, code)
        # The small model has fewer dimensions than a published one.
        code = code.replace("Qwen/Qwen3-Embedding-0.6B", MODEL).replace("dimensions=256", "dimensions=32")
        assert n_urls > 0, f"{page}: {code}"
        names = {}
        exec(code, names)
        for response in [value for value in names.values() if hasattr(value, "data")]:
            assert len(response.data[0].embedding) > 0, response
            n_run += 1
assert n_run > 0
print(f"{n_run} responses")
