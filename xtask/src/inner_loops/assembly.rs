//! Loops in assembly for x86-64, in the syntax of AT&T, which rustc writes.

use std::collections::BTreeMap;
use std::ops::Range;

/// A function.
pub(super) struct Function<'a> {
    pub(super) symbol: &'a str,
    instructions: Vec<Instruction<'a>>,
    /// The loops: for each backward jump, the instructions from its target to the jump.
    loops: Vec<Range<usize>>,
}

/// An instruction with its operands.
struct Instruction<'a> {
    text: &'a str,
    mnemonic: &'a str,
    operands: Vec<&'a str>,
}

/// The innermost loop of a tile.
pub(super) struct InnerLoop<'a> {
    instructions: &'a [Instruction<'a>],
    /// The instructions before and after the inner loop in the next larger loop.
    around: [&'a [Instruction<'a>]; 2],
    multiplies: &'a [&'a str],
}

/// Counts of instructions.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Counts {
    pub(super) all: usize,
    pub(super) multiplies: usize,
    /// Loads of whole vector registers from memory other than the stack: weights.
    pub(super) vectors: usize,
    /// Other loads from memory other than the stack: mostly activations, the same value for every lane. Some of these
    /// instructions also multiply.
    pub(super) broadcasts: usize,
    /// Instructions that access the stack, because a value has no register.
    pub(super) spills: usize,
    /// Instructions that do nothing of the above.
    pub(super) others: usize,
}

impl<'a> Function<'a> {
    /// The functions in the output of rustc whose symbol begins with `_R`: those of Rust.
    pub(super) fn all(assembly: &'a str) -> Vec<Self> {
        let mut functions = Vec::new();
        let mut lines = assembly.lines();
        while let Some(line) = lines.next() {
            let symbol = line.strip_suffix(':').filter(|symbol| symbol.starts_with("_R"));
            if let Some(symbol) = symbol {
                functions.push(Self::parse(symbol, &mut lines));
            }
        }
        functions
    }

    fn parse(symbol: &'a str, lines: &mut impl Iterator<Item = &'a str>) -> Self {
        let (mut instructions, mut loops) = (Vec::new(), Vec::new());
        let mut labels = BTreeMap::new();
        for line in lines.take_while(|line| !line.starts_with(".Lfunc_end")) {
            if let Some(label) = line.strip_suffix(':') {
                labels.insert(label, instructions.len());
                continue;
            }
            let text = line.split('#').next().unwrap_or_default().trim();
            if text.is_empty() || text.starts_with('.') {
                continue;
            }
            let instruction = Instruction::parse(text);
            let target = instruction.operands.first().and_then(|label| labels.get(label));
            instructions.push(instruction);
            // Only jumps have labels as operands, and only the labels above are known here.
            loops.extend(target.map(|&start| start..instructions.len()));
        }
        Self { symbol, instructions, loops }
    }

    /// The innermost loop of the tile with the most rows. `multiplies` are the beginnings of the names of the
    /// instructions that multiply.
    ///
    /// A function has a loop for each number of rows, and loops of few rows may be unrolled. All of them prefetch, and
    /// the loops of epilogues do not. A loop multiplies each vector of weights with all rows, so the loop of the most
    /// rows has the most multiplies for each loaded vector. If there are several such loops, this is the longest.
    pub(super) fn inner_loop(&'a self, multiplies: &'a [&'a str]) -> Option<InnerLoop<'a>> {
        let contains = |a: &Range<usize>, b: &Range<usize>| {
            a.start <= b.start && b.end <= a.end && a.len() > b.len()
        };
        let innermost = self.loops.iter().filter(|a| !self.loops.iter().any(|b| contains(a, b)));
        let inner = |range: &Range<usize>| {
            let outer = self.loops.iter().filter(|outer| contains(outer, range));
            let outer = outer.min_by_key(|outer| outer.len()).unwrap_or(range);
            InnerLoop {
                instructions: &self.instructions[range.clone()],
                around: [
                    &self.instructions[outer.start..range.start],
                    &self.instructions[range.end..outer.end],
                ],
                multiplies,
            }
        };
        let prefetches = |inner: &InnerLoop<'_>| {
            inner.instructions.iter().any(|instruction| instruction.begins_with(&["prefetch"]))
        };
        innermost.map(inner).filter(prefetches).max_by_key(|inner| {
            let counts = inner.counts();
            (counts.multiplies / counts.vectors.max(1), counts.all)
        })
    }
}

impl<'a> Instruction<'a> {
    fn parse(text: &'a str) -> Self {
        // The prefix `{vex}` chooses an encoding.
        let instruction = text.trim_start_matches("{vex}").trim();
        let (mnemonic, operands) =
            instruction.split_once(char::is_whitespace).unwrap_or((instruction, ""));
        // Commas inside parentheses separate the parts of an address.
        let mut depth = 0;
        let separates = |c: char| {
            depth += i32::from(c == '(') - i32::from(c == ')');
            c == ',' && depth == 0
        };
        Self { text, mnemonic, operands: operands.split(separates).map(str::trim).collect() }
    }

    fn begins_with(&self, mnemonics: &[&str]) -> bool {
        mnemonics.iter().any(|begin| self.mnemonic.starts_with(begin))
    }

    fn has_operand(&self, part: &str) -> bool {
        self.operands.iter().any(|operand| operand.contains(part))
    }

    /// Whether the instruction accesses the stack.
    fn is_spill(&self) -> bool {
        self.has_operand("(%rsp")
    }

    /// Whether the instruction reads memory other than the stack. `lea` and `prefetch` compute an address.
    fn is_load(&self) -> bool {
        self.has_operand("(") && !self.is_spill() && !self.begins_with(&["lea", "prefetch"])
    }

    /// Whether the instruction loads a whole vector register that is not a constant.
    fn is_vector_load(&self) -> bool {
        let is_broadcast = self.mnemonic.contains("broadcast") || self.has_operand("{1to");
        self.is_load() && self.begins_with(&["v"]) && !is_broadcast && !self.has_operand("(%rip")
    }
}

impl InnerLoop<'_> {
    /// The instructions, one on each line.
    pub(super) fn text(&self) -> String {
        self.instructions.iter().map(|instruction| format!("{}\n", instruction.text)).collect()
    }

    pub(super) fn counts(&self) -> Counts {
        self.count(self.instructions)
    }

    /// The counts of the next larger loop before and after the inner loop.
    pub(super) fn counts_around(&self) -> [Counts; 2] {
        self.around.map(|instructions| self.count(instructions))
    }

    fn count(&self, instructions: &[Instruction<'_>]) -> Counts {
        let mut counts = Counts { all: instructions.len(), ..Counts::default() };
        for instruction in instructions {
            let is_vector = instruction.is_vector_load();
            let kinds = [
                (&mut counts.multiplies, instruction.begins_with(self.multiplies)),
                (&mut counts.vectors, is_vector),
                (&mut counts.broadcasts, instruction.is_load() && !is_vector),
                (&mut counts.spills, instruction.is_spill()),
            ];
            counts.others += usize::from(kinds.iter().all(|(_, is_of_kind)| !is_of_kind));
            for (count, is_of_kind) in kinds {
                *count += usize::from(is_of_kind);
            }
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tile of one row, unrolled, and a tile of two rows in a loop over groups. One of its sums is on the stack.
    /// Then an epilogue.
    const ASSEMBLY: &str = "
_RNvC4test4tile:
	.cfi_startproc
.LBB0_1:
	prefetcht0	(%rcx)
	vmovdqu64	(%rsi), %zmm2
	vpbroadcastd	(%rax,%rdx,4), %zmm1
	vpdpbusd	%zmm1, %zmm2, %zmm3
	vpbroadcastd	4(%rax,%rdx,4), %zmm1
	vpdpbusd	64(%rsi), %zmm1, %zmm3
	vpdpbusd	128(%rsi), %zmm1, %zmm3
	jne	.LBB0_1
.LBB0_2:
	movq	8(%rsp), %rax
	vpxor	%xmm4, %xmm4, %xmm4
.LBB0_3:
	prefetcht0	(%rcx)
	vmovdqu64	(%rsi,%rdx), %zmm2
	{vex}	vpdpbusd	(%rax){1to16}, %zmm2, %zmm4  # a comment
	vmovdqa64	64(%rsp), %zmm6
	vpdpbusd	(%rax,%rbx){1to16}, %zmm2, %zmm6
	vmovdqa64	%zmm6, 64(%rsp)
	jne	.LBB0_3
	vmulps	.LCPI0_0(%rip), %zmm5, %zmm4
	jne	.LBB0_2
.LBB0_4:
	vpdpbusd	%zmm1, %zmm2, %zmm3
	vpdpbusd	%zmm1, %zmm2, %zmm3
	vpdpbusd	%zmm1, %zmm2, %zmm3
	jne	.LBB0_4
	jmp	.LBB0_9
.Lfunc_end0:
helper:
	ret
";

    #[test]
    fn finds_the_innermost_loop_of_the_most_rows() {
        let functions = Function::all(ASSEMBLY);
        assert_eq!(functions.len(), 1);
        assert_eq!(functions[0].symbol, "_RNvC4test4tile");
        let inner = functions[0].inner_loop(&["vpdpbusd"]).unwrap();
        let (text, last) = (inner.text(), "\njne\t.LBB0_3\n");
        assert!(text.starts_with("prefetcht0\t(%rcx)\n") && text.ends_with(last), "{text}");
    }

    #[test]
    fn counts_instructions_of_each_kind() {
        let functions = Function::all(ASSEMBLY);
        let inner = functions[0].inner_loop(&["vpdpbusd"]).unwrap();
        let expected =
            Counts { all: 7, multiplies: 2, vectors: 1, broadcasts: 2, spills: 2, others: 2 };
        assert_eq!(inner.counts(), expected);
        let [before, after] = inner.counts_around();
        assert_eq!(before, Counts { all: 2, spills: 1, others: 1, ..Counts::default() });
        assert_eq!(after, Counts { all: 2, broadcasts: 1, others: 1, ..Counts::default() });
    }
}
