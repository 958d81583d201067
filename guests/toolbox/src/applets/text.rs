//! `cat`.

use super::Answer;
use crate::context::Context;
use crate::io::{Filter, Lines, Output, Started, Written};
use crate::options::{Spec, parse};

pub fn cat(context: &mut Context, args: &[String]) -> Answer {
    const SPEC: Spec = Spec {
        short: "nuA",
        long: &[("number", 'n')],
        stop: false,
    };
    let options = parse(&SPEC, args)?;
    let cat = Cat {
        out: context.stdout.clone(),
        numbers: options.has('n').then_some(0),
        lines: Lines::default(),
    };
    Ok(Started::Reads(options.operands, Box::new(cat)))
}

struct Cat {
    out: Output,
    /// The last number given to a line.
    numbers: Option<u64>,
    lines: Lines,
}

impl Filter for Cat {
    fn push(&mut self, bytes: &[u8]) -> Written {
        let Some(last) = &mut self.numbers else {
            return self.out.write(bytes);
        };
        let out = &self.out;
        self.lines.push(bytes, |line| {
            *last += 1;
            out.write(format!("{last:>6}\t").as_bytes())?;
            out.write(line)
        })
    }

    fn end(&mut self) -> i32 {
        let rest = self.lines.rest();
        if let (Some(last), false) = (self.numbers, rest.is_empty()) {
            let _ = self.out.write(format!("{:>6}\t", last + 1).as_bytes());
            let _ = self.out.write(&rest);
        }
        0
    }
}
