//! Loops in assembly for x86-64, in the syntax of AT&T, which rustc writes.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// A function.
pub(super) struct Function<'a> {
    pub(super) symbol: &'a str,
    instructions: Vec<Instruction<'a>>,
    /// The loops: each backward jump, and the instructions up to it from its target.
    loops: Vec<Range<usize>>,
}

/// An instruction with its operands, of which the last one is the destination.
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
#[derive(Default)]
pub(super) struct Counts {
    pub(super) all: usize,
    pub(super) multiplies: usize,
    /// Instructions that read memory other than the stack, some of which are multiplies.
    pub(super) loads: usize,
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

    /// The innermost loop that computes the tile with the most rows. `multiplies` are the beginnings of the names of
    /// the instructions that multiply.
    ///
    /// A function has a loop for each number of rows, and the loops of few rows may be unrolled. So this is the loop
    /// that updates the most sums. If several update as many, it is the loop with the largest share of multiplies.
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
        let loops = innermost.map(inner).filter(|inner| inner.counts().multiplies > 0);
        loops.max_by_key(|inner| {
            let counts = inner.counts();
            (inner.n_sums(), 1000 * counts.multiplies / counts.all)
        })
    }
}

impl<'a> Instruction<'a> {
    fn parse(text: &'a str) -> Self {
        // The prefix `{vex}` chooses an encoding.
        let (mnemonic, operands) = text
            .trim_start_matches("{vex}")
            .trim()
            .split_once('\t')
            .map_or_else(|| (text, ""), |(mnemonic, operands)| (mnemonic, operands));
        // Commas inside parentheses separate the parts of an address.
        let mut depth = 0;
        let separates = |c: char| {
            depth += i32::from(c == '(') - i32::from(c == ')');
            c == ',' && depth == 0
        };
        Self { text, mnemonic, operands: operands.split(separates).map(str::trim).collect() }
    }

    /// Whether the destination is also an operand.
    fn accumulates(&self) -> bool {
        ["vfm", "vfnm", "vpdp", "vdp"].iter().any(|begin| self.mnemonic.starts_with(begin))
    }

    fn is_one_of(&self, mnemonics: &[&str]) -> bool {
        mnemonics.iter().any(|begin| self.mnemonic.starts_with(begin))
    }

    /// The vector registers and the places on the stack that the instruction reads.
    fn reads(&self) -> impl Iterator<Item = &'a str> {
        let n = self.operands.len() - usize::from(!self.accumulates());
        self.operands[..n].iter().filter_map(|operand| place(operand))
    }

    /// The vector register or the place on the stack that the instruction writes.
    fn writes(&self) -> Option<&'a str> {
        self.operands.last().and_then(|operand| place(operand))
    }

    /// Whether the instruction stores a vector register to the stack.
    fn is_store(&self) -> bool {
        self.is_one_of(&["vmov"]) && self.writes().is_some_and(|place| place.contains('('))
    }

    fn is_spill(&self) -> bool {
        self.operands.iter().any(|operand| operand.contains("(%rsp"))
    }

    fn is_load(&self) -> bool {
        // These instructions compute an address.
        let reads = !self.is_one_of(&["lea", "prefetch"]);
        reads && !self.is_spill() && self.operands.iter().any(|operand| operand.contains('('))
    }
}

/// The number of a vector register, or a place on the stack.
fn place(operand: &str) -> Option<&str> {
    let number = ["%xmm", "%ymm", "%zmm"].iter().find_map(|name| operand.strip_prefix(name));
    number.or_else(|| operand.contains("(%rsp").then_some(operand))
}

impl InnerLoop<'_> {
    /// The instructions, one on each line.
    pub(super) fn text(&self) -> String {
        self.instructions.iter().map(|instruction| format!("{}\n", instruction.text)).collect()
    }

    pub(super) fn counts(&self) -> Counts {
        self.count(self.instructions)
    }

    /// The counts of the next larger loop without the inner loop.
    pub(super) fn counts_around(&self) -> [Counts; 2] {
        self.around.map(|instructions| self.count(instructions))
    }

    fn count(&self, instructions: &[Instruction<'_>]) -> Counts {
        let mut counts = Counts { all: instructions.len(), ..Counts::default() };
        for instruction in instructions {
            let kinds = [
                (&mut counts.multiplies, instruction.is_one_of(self.multiplies)),
                (&mut counts.loads, instruction.is_load()),
                (&mut counts.spills, instruction.is_spill()),
            ];
            counts.others += usize::from(kinds.iter().all(|(_, is_of_kind)| !is_of_kind));
            for (count, is_of_kind) in kinds {
                *count += usize::from(is_of_kind);
            }
        }
        counts
    }

    /// The number of vector registers and places on the stack that are sums: an iteration adds a product to the sum of
    /// the iteration before.
    pub(super) fn n_sums(&self) -> usize {
        let mut is_read_first = BTreeMap::new();
        for instruction in self.instructions {
            for place in instruction.reads() {
                is_read_first.entry(place).or_insert(true);
            }
            if let Some(place) = instruction.writes() {
                is_read_first.entry(place).or_insert(false);
            }
        }
        let products = (0..self.instructions.len())
            .filter(|&i| self.instructions[i].is_one_of(self.multiplies));
        let sums: BTreeSet<&str> =
            products.filter_map(|i| self.sum_of(i, &is_read_first)).collect();
        sums.len()
    }

    /// The sum to which the product of instruction `i` is added, by this instruction or by the additions that follow.
    /// The last addition may store it to the stack.
    fn sum_of(&self, i: usize, is_read_first: &BTreeMap<&str, bool>) -> Option<&str> {
        let after = &self.instructions[i..];
        let mut place = after[0].writes()?;
        let mut is_sum = after[0].accumulates();
        for instruction in &after[1..] {
            if is_sum && self.is_only_added_to(place) && is_read_first[place] {
                break;
            }
            let adds = instruction.is_one_of(&["vpadd"]);
            if instruction.reads().any(|read| read == place) && (adds || instruction.is_store()) {
                place = instruction.writes()?;
                is_sum = true;
            }
        }
        let is_sum = is_sum && is_read_first[place];
        (is_sum && (place.contains('(') || self.is_only_added_to(place))).then_some(place)
    }

    /// Whether instructions that add are the only ones that write a place.
    fn is_only_added_to(&self, place: &str) -> bool {
        let mut writing = self.instructions.iter().filter(|i| i.writes() == Some(place));
        writing.all(|i| i.accumulates() || i.is_one_of(&["vpadd"]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tile of one row, unrolled, and a tile of two rows in a loop over groups. One of its sums is on the stack.
    const ASSEMBLY: &str = "
_RNvC4test4tile:
	.cfi_startproc
.LBB0_1:
	vpbroadcastd	(%rax,%rdx,4), %zmm1
	vpdpbusd	%zmm1, %zmm2, %zmm3
	vpbroadcastd	4(%rax,%rdx,4), %zmm1
	vpdpbusd	%zmm1, %zmm2, %zmm3
	vpdpbusd	%zmm1, %zmm2, %zmm3
	jne	.LBB0_1
.LBB0_2:
	movq	8(%rsp), %rax
	vpxor	%xmm4, %xmm4, %xmm4
.LBB0_3:
	prefetcht0	(%rcx)
	{vex}	vpdpbusd	(%rax), %zmm2, %zmm4  # a comment
	vmovdqa64	64(%rsp), %zmm6
	vpdpbusd	(%rax,%rbx), %zmm2, %zmm6
	vmovdqa64	%zmm6, 64(%rsp)
	jne	.LBB0_3
	vmulps	%zmm4, %zmm5, %zmm4
	jne	.LBB0_2
	jmp	.LBB0_9
.Lfunc_end0:
helper:
	ret
";

    #[test]
    fn finds_the_innermost_loop_with_the_most_sums() {
        let functions = Function::all(ASSEMBLY);
        assert_eq!(functions.len(), 1);
        assert_eq!(functions[0].symbol, "_RNvC4test4tile");
        let inner = functions[0].inner_loop(&["vpdpbusd"]).unwrap();
        assert_eq!(inner.n_sums(), 2);
        assert!(inner.text().starts_with("prefetcht0\t(%rcx)\n{vex}"), "{}", inner.text());
        assert!(functions[0].inner_loop(&["vdpbf16ps"]).is_none());
    }

    #[test]
    fn counts_instructions_of_each_kind() {
        let functions = Function::all(ASSEMBLY);
        let inner = functions[0].inner_loop(&["vpdpbusd"]).unwrap();
        let of = |counts: &Counts| {
            [counts.all, counts.multiplies, counts.loads, counts.spills, counts.others]
        };
        assert_eq!(of(&inner.counts()), [6, 2, 2, 2, 2]);
        let [before, after] = inner.counts_around();
        assert_eq!(of(&before), [2, 0, 0, 1, 1]);
        assert_eq!(of(&after), [2, 0, 0, 0, 2]);
    }

    #[test]
    fn finds_sums_of_products_that_are_added_by_another_instruction() {
        let assembly = "
_RNvC4test5pairs:
.LBB1_1:
	vpmaddwd	(%rax), %ymm1, %ymm5
	vpaddd	%ymm5, %ymm2, %ymm2
	vpmaddwd	(%rax,%rbx), %ymm1, %ymm5
	vpaddd	%ymm5, %ymm3, %ymm3
	jne	.LBB1_1
.Lfunc_end1:
";
        let functions = Function::all(assembly);
        assert_eq!(functions[0].inner_loop(&["vpmaddwd"]).unwrap().n_sums(), 2);
    }
}
