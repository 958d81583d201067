//! `echo`.

use super::{Answer, done, printf};
use crate::context::Context;

pub fn start(context: &mut Context, args: &[String]) -> Answer {
    let (mut newline, mut escapes, mut words) = (true, false, args);
    while let Some((first, rest)) = words.split_first() {
        let letters = first.strip_prefix('-').unwrap_or_default();
        if letters.is_empty() || !letters.chars().all(|c| matches!(c, 'n' | 'e' | 'E')) {
            break;
        }
        for letter in letters.chars() {
            match letter {
                'n' => newline = false,
                letter => escapes = letter == 'e',
            }
        }
        words = rest;
    }
    let mut text = words.join(" ").into_bytes();
    if escapes {
        let (unescaped, stopped) = printf::unescape(&words.join(" "));
        text = unescaped;
        newline &= !stopped;
    }
    if newline {
        text.push(b'\n');
    }
    done(i32::from(context.stdout.write(&text).is_err()))
}
