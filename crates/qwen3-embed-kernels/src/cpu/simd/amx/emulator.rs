//! Executes the instructions of AMX on CPUs without AMX, so that tests can run the assembly.
//!
//! Such a CPU raises the signal SIGILL for each of these instructions. The handler decodes the instruction, computes its
//! effect on tile registers in memory, and continues after it. The effects follow the description of the instructions in
//! Intel's manual. Where the description says that an instruction faults, the process ends by the signal.

use std::cell::UnsafeCell;
use std::sync::Once;

use half::bf16;
use libc::{c_int, c_void, siginfo_t, ucontext_t};

/// Rows and bytes of a row of the largest tile.
const ROWS: usize = 16;
const ROW_BYTES: usize = 64;

/// The tile registers of a thread.
struct Registers {
    /// Bytes of a row and rows of each register, as configured. Zero rows if the register is not configured.
    shapes: [(usize, usize); 8],
    rows: [[[u8; ROW_BYTES]; ROWS]; 8],
}

const INITIAL: Registers = Registers { shapes: [(0, 0); 8], rows: [[[0; ROW_BYTES]; ROWS]; 8] };

thread_local! {
    static REGISTERS: UnsafeCell<Registers> = const { UnsafeCell::new(INITIAL) };
}

/// Emulates AMX in this process from now on, for instructions that the CPU does not have.
pub(in crate::cpu) fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        type Handler = unsafe extern "C" fn(c_int, *mut siginfo_t, *mut c_void);
        // SAFETY: all bits zero is a valid `sigaction`, and the handler only reads the interrupted code and writes what
        // its instructions would write.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_illegal_instruction as Handler as usize;
            action.sa_flags = libc::SA_SIGINFO;
            assert_eq!(libc::sigaction(libc::SIGILL, &action, std::ptr::null_mut()), 0);
        }
    });
}

/// The handler of SIGILL.
unsafe extern "C" fn on_illegal_instruction(_: c_int, _: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes the context of the interrupted code. Each thread handles its own signals, one at a time,
    // so nothing else refers to the registers of the thread.
    unsafe {
        let general = &mut (*context.cast::<ucontext_t>()).uc_mcontext.gregs;
        let at = general[libc::REG_RIP as usize] as *const u8;
        let executed = REGISTERS.with(|registers| {
            let instruction = Instruction::decode(at, general)?;
            instruction.execute(&mut *registers.get())?;
            Some(instruction.length)
        });
        match executed {
            Some(length) => general[libc::REG_RIP as usize] += length as i64,
            // The instruction is executed again, and the signal ends the process.
            None => _ = libc::signal(libc::SIGILL, libc::SIG_DFL),
        }
    }
}

/// A decoded instruction of AMX.
struct Instruction {
    length: usize,
    /// The mandatory prefix: 0 for none, 1 for 66, 2 for F3, 3 for F2.
    prefix: u8,
    opcode: u8,
    /// The register operands: ModRM.reg, ModRM.rm and VEX.vvvv.
    registers: [usize; 3],
    memory: Option<Memory>,
}

/// A memory operand. The index register is the distance between rows.
struct Memory {
    start: *mut u8,
    row_stride: usize,
}

impl Instruction {
    /// Decodes an instruction with a three-byte VEX prefix of the opcode map 0F 38, or returns `None`.
    ///
    /// # Safety
    ///
    /// An instruction is at `at`, and `general` has the general registers.
    unsafe fn decode(at: *const u8, general: &[i64; 23]) -> Option<Self> {
        use libc::{REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
        use libc::{REG_RAX, REG_RBP, REG_RBX, REG_RCX, REG_RDI, REG_RDX, REG_RSI, REG_RSP};
        const GENERAL: [c_int; 16] = [
            REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI, REG_R8, REG_R9,
            REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15,
        ];
        let value = |register: u8| general[GENERAL[usize::from(register)] as usize];
        // SAFETY: the caller's promise. Bytes after the instruction are not read.
        let byte = |i: usize| unsafe { *at.add(i) };
        if byte(0) != 0xc4 || byte(1) & 0x1f != 2 {
            return None;
        }
        let (inverted, vex, opcode, modrm) = (!byte(1), byte(2), byte(3), byte(4));
        let extension = |bit: u8| (inverted >> bit & 1) << 3;
        let (mode, reg, rm) = (modrm >> 6, modrm >> 3 & 7, modrm & 7);
        let registers = [reg, rm, !(vex >> 3) & 15].map(usize::from);
        let mut length = 5;
        let memory = (mode != 3).then(|| {
            let (mut base, mut index) = (rm | extension(5), None);
            if rm == 4 {
                let sib = byte(5);
                length += 1;
                base = sib & 7 | extension(5);
                let register = sib >> 3 & 7 | extension(6);
                index = (register != 4).then(|| value(register) << (sib >> 6));
            }
            let displacement = match mode {
                1 => i64::from(byte(length).cast_signed()),
                2 => i64::from(i32::from_le_bytes(std::array::from_fn(|i| byte(length + i)))),
                _ => 0,
            };
            length += [0, 1, 4][usize::from(mode)];
            let start = (value(base) + displacement) as *mut u8;
            Memory { start, row_stride: index.unwrap_or(0) as usize }
        });
        // With mode 0, rbp and r13 are not base registers. The assembler does not encode them so.
        let is_simple = !(mode == 0 && rm & 7 == 5);
        is_simple.then_some(Self { length, prefix: vex & 3, opcode, registers, memory })
    }

    /// Executes the instruction, or returns `None` if it is unknown or faults.
    ///
    /// # Safety
    ///
    /// A memory operand is valid for the access.
    unsafe fn execute(&self, state: &mut Registers) -> Option<()> {
        let [to, left, right] = self.registers;
        // SAFETY: the caller's promise.
        unsafe {
            match (self.opcode, self.prefix, &self.memory) {
                (0x49, 0, Some(memory)) => {
                    state.configure(memory.start.cast::<[u8; 64]>().read())?
                }
                (0x49, 0, None) => *state = INITIAL,
                (0x49, 3, None) => state.replace(to, |_, _| [0; ROW_BYTES])?,
                (0x4b, 3, Some(memory)) => {
                    let row_bytes = state.shape(to)?.0;
                    state.replace(to, |row, _| {
                        let mut bytes = [0; ROW_BYTES];
                        let from = memory.start.add(row * memory.row_stride);
                        from.copy_to(bytes.as_mut_ptr(), row_bytes);
                        bytes
                    })?;
                }
                (0x4b, 2, Some(memory)) => {
                    let (row_bytes, n_rows) = state.shape(to)?;
                    for (row, bytes) in state.rows[to][..n_rows].iter().enumerate() {
                        let into = memory.start.add(row * memory.row_stride);
                        into.copy_from(bytes.as_ptr(), row_bytes);
                    }
                }
                (0x5c, 2, None) => state.multiply(to, left, right, add_pairs)?,
                (0x5e, 2, None) => state.multiply(to, left, right, add_quads)?,
                _ => return None,
            }
        }
        Some(())
    }
}

impl Registers {
    /// `ldtilecfg`
    fn configure(&mut self, operand: [u8; 64]) -> Option<()> {
        let is_valid = operand[0] == 1 && operand[1..16].iter().all(|&byte| byte == 0);
        *self = INITIAL;
        for (i, shape) in self.shapes.iter_mut().enumerate() {
            let row_bytes = u16::from_le_bytes([operand[16 + 2 * i], operand[17 + 2 * i]]);
            let n_rows = operand[48 + i];
            if usize::from(row_bytes) > ROW_BYTES || usize::from(n_rows) > ROWS {
                return None;
            }
            *shape = (row_bytes.into(), n_rows.into());
        }
        is_valid.then_some(())
    }

    /// The bytes of a row and the rows of a register, which must be configured.
    fn shape(&self, register: usize) -> Option<(usize, usize)> {
        let (row_bytes, n_rows) = *self.shapes.get(register)?;
        (row_bytes > 0 && n_rows > 0).then_some((row_bytes, n_rows))
    }

    /// Replaces each row of a register by the result of a function, and the rows after the last by zero.
    fn replace(
        &mut self,
        register: usize,
        row: impl Fn(usize, [u8; ROW_BYTES]) -> [u8; ROW_BYTES],
    ) -> Option<()> {
        let (row_bytes, n_rows) = self.shape(register)?;
        for (i, bytes) in self.rows[register].iter_mut().enumerate() {
            *bytes = if i < n_rows { row(i, *bytes) } else { [0; ROW_BYTES] };
            bytes[row_bytes..].fill(0);
        }
        Some(())
    }

    /// Multiplies two registers: `add(sum, left, right)` adds the products of the groups of four bytes of a row of `left`
    /// with the groups of a column of `right`.
    fn multiply(
        &mut self,
        to: usize,
        left: usize,
        right: usize,
        add: impl Fn([u8; 4], &[[u8; 4]], &[[u8; 4]]) -> [u8; 4],
    ) -> Option<()> {
        let (to_shape, left_shape, right_shape) =
            (self.shape(to)?, self.shape(left)?, self.shape(right)?);
        let n_groups = left_shape.0 / 4;
        let are_distinct = to != left && to != right && left != right;
        let fits =
            to_shape.1 == left_shape.1 && to_shape.0 == right_shape.0 && n_groups == right_shape.1;
        let groups = |bytes: &[u8; ROW_BYTES]| {
            *bytes.as_chunks::<4>().0.first_chunk::<16>().expect("a row has 16 groups")
        };
        let left = self.rows[left];
        let right = self.rows[right].map(|row| groups(&row));
        self.replace(to, |row, mut sums| {
            let left = groups(&left[row]);
            for (n, sum) in sums.as_chunks_mut::<4>().0[..to_shape.0 / 4].iter_mut().enumerate() {
                let column = right.map(|row| row[n]);
                *sum = add(*sum, &left[..n_groups], &column[..n_groups]);
            }
            sums
        })?;
        (are_distinct && fits).then_some(())
    }
}

/// Subnormal values are zero, as operands and as results.
fn flushed(x: f32) -> f32 {
    if x.is_subnormal() { 0.0f32.copysign(x) } else { x }
}

/// `tdpbf16ps`
fn add_pairs(sum: [u8; 4], left: &[[u8; 4]], right: &[[u8; 4]]) -> [u8; 4] {
    let value = |low, high| flushed(bf16::from_le_bytes([low, high]).to_f32());
    let mut chains = [0f32; 2];
    for (left, right) in left.iter().zip(right) {
        for (i, chain) in chains.iter_mut().enumerate() {
            let left = value(left[2 * i], left[2 * i + 1]);
            let right = value(right[2 * i], right[2 * i + 1]);
            *chain = flushed(left.mul_add(right, *chain));
        }
    }
    let products = flushed(chains[0] + chains[1]);
    flushed(flushed(f32::from_le_bytes(sum)) + products).to_le_bytes()
}

/// `tdpbsud`
fn add_quads(sum: [u8; 4], left: &[[u8; 4]], right: &[[u8; 4]]) -> [u8; 4] {
    let products = left.as_flattened().iter().zip(right.as_flattened());
    let products = products.map(|(&left, &right)| i32::from(left.cast_signed()) * i32::from(right));
    products.fold(i32::from_le_bytes(sum), i32::wrapping_add).to_le_bytes()
}
