//! What the agent asks of the programs: a flow's change, or what the scanner makes of a text.

use aya::programs::{ProgramError, SchedClassifier, TestRun as _, TestRunOptions};
use sluice_ebpf_common::insertion::{self as flows, CARRY, COMMAND_AT, Command, FlowKey, Op, Outcome};

use super::Programs;

/// What [`Programs::scan`] looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scanned {
    /// Requests that begin with the text.
    Requests,
    /// Answers.
    Answers {
        /// A bit for each request that is owed an answer, the first in the lowest, whether it is a `HEAD`.
        heads: u32,
        /// What the text goes on with.
        begun: Begun,
    },
}

/// What the kernel knows of an answer that goes on in another packet; zeros where one begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begun {
    /// Where in the grammar, and a length.
    pub kept: [u32; 2],
    /// The beginning of a line that was cut.
    pub carry: [u8; CARRY],
}

impl Default for Begun {
    fn default() -> Self {
        Self { kept: [0; 2], carry: [0; CARRY] }
    }
}

// === impl Programs ===

impl Programs {
    /// Changes a flow, under its lock.
    pub fn command(&self, key: &FlowKey, id: u32, op: Op, numbers: &[u32]) -> Outcome {
        let numbers = std::array::from_fn(|n| numbers.get(n).copied().unwrap_or_default());
        let command = Command { key: *key, op: op as u32, id, numbers, found: [0; 4] };
        let mut packet = [0; COMMAND_AT + size_of::<Command>()];
        packet[COMMAND_AT..].copy_from_slice(&command.to_bytes());
        self.run(&packet, None).map_or(Outcome::Unknown, Outcome::of)
    }

    /// Runs the kernel's scanner on text, as it would look at the data of a packet to `port`, or from it: for tests of its
    /// agreement with the parser. Of what is returned with [`Outcome::Done`], the numbers are where the next message begins, how
    /// many were found, which of the requests are `HEAD`, and bits: 1 for a message that says it is the last, 2 for an answer
    /// that only the connection's end ends, 4 for a chunked one of which a chunk's data ends there,
    /// 8 for a request that may fit a wiretap. With [`Outcome::More`]
    /// the third is how many have ended before, and the rest is what an answer goes on with in the next packet.
    ///
    /// # Errors
    /// When the kernel does not run the program: the text and the command have to fit into one page.
    pub fn scan(&self, port: u16, text: &[u8], what: Scanned) -> Result<(Outcome, [u32; 4], Begun), ProgramError> {
        const CARRY_AT: usize = COMMAND_AT + size_of::<Command>();
        let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
        let key = FlowKey { caller: [0; 4], pod: [0; 4], caller_port: 0, port };
        let (numbers, begun) = match what {
            Scanned::Requests => ([length, 0, 0, 0, 0, 0], Begun::default()),
            Scanned::Answers { heads, begun } => ([length, 1 | heads << 1, begun.kept[0], begun.kept[1], 0, 0], begun),
        };
        let command = Command { key, op: Op::Scan as u32, id: 0, numbers, found: [0; 4] };
        let mut packet = vec![0; COMMAND_AT];
        packet.extend(command.to_bytes());
        packet.extend(begun.carry);
        packet.extend(text);
        let mut out = vec![0; packet.len()];
        let code = self.run(&packet, Some(&mut out))?;
        let command = out.get(COMMAND_AT..).and_then(Command::from_bytes).unwrap_or(command);
        let carry = out.get(CARRY_AT..).and_then(|rest| rest.first_chunk()).copied().unwrap_or(begun.carry);
        let [keep, length, ..] = command.found;
        Ok((Outcome::of(code), command.found, Begun { kept: [keep, length], carry }))
    }

    fn run(&self, packet: &[u8], out: Option<&mut [u8]>) -> Result<u32, ProgramError> {
        let program = self.ebpf.program(flows::COMMAND_PROGRAM).ok_or(ProgramError::NotLoaded)?;
        let program: &SchedClassifier = program.try_into()?;
        let mut options = TestRunOptions::new();
        options.data_in = Some(packet);
        options.data_out = out;
        Ok(program.test_run(options)?.return_value)
    }
}
