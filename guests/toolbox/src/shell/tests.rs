//! Scripts and what they print: the shell as a whole.

use std::cell::RefCell;
use std::rc::Rc;

use crate::applets;
use crate::context::Context;
use crate::io::{Input, Output};

/// Output (both streams) and exit code of a script.
fn run(script: &str) -> (String, i32) {
    let gathered = Rc::new(RefCell::new(Vec::new()));
    let mut context = Context {
        name: "sh".to_owned(),
        env: [("HOME".to_owned(), "/root".to_owned())].into(),
        cwd: "/".to_owned(),
        stdin: Input::nothing(),
        stdout: Output::Gather(Rc::clone(&gathered)),
        stderr: Output::Gather(Rc::clone(&gathered)),
    };
    let code = applets::run(&mut context, "sh", &["-c".to_owned(), script.to_owned()]);
    (String::from_utf8(gathered.take()).unwrap(), code)
}

fn prints(script: &str, expected: &str) {
    assert_eq!(run(script).0, expected, "{script}");
}

fn ends(script: &str, expected: i32) {
    assert_eq!(run(script).1, expected, "{script}");
}

#[test]
fn quotes_keep_words_together() {
    prints(
        r#"x='a  b'; echo $x "$x" '$x' \$x "\$x""#,
        "a b a  b $x $x $x\n",
    );
    prints(
        r#"set -- "a b" c; for i in "$@"; do echo "<$i>"; done"#,
        "<a b>\n<c>\n",
    );
    prints(
        r#"set -- "a b" c; for i in $*; do echo "<$i>"; done"#,
        "<a>\n<b>\n<c>\n",
    );
    prints(
        r#"set -- a b; echo "$*" "$#"; IFS=-; echo "$*""#,
        "a b 2\na-b\n",
    );
    prints(r#"for i in "$@"; do echo never; done; echo "" | cat"#, "\n");
    prints(
        "echo a\\\nb; echo 'it'\"'\"'s' $'tab\\there'",
        "ab\nit's tab\there\n",
    );
    prints("echo a#b # comment", "a#b\n");
}

#[test]
fn parameters_expand() {
    prints(
        "echo ${x:-d} ${x-e} ${x:+n}. ${x:=s} $x ${x:+y} ${#x}",
        "d e . s s y 1\n",
    );
    prints(
        "f=/a/b/c.tar.gz; echo ${f##*/} ${f%/*} ${f%.*} ${f%%.*} ${f#*/}",
        "c.tar.gz /a/b /a/b/c.tar /a/b/c a/b/c.tar.gz\n",
    );
    prints(
        "x=hello; echo ${x:1:3} ${x:2} ${x: -3} ${x/l/L} ${x//l/L}",
        "ell llo llo heLlo heLLo\n",
    );
    prints("x='a*b'; echo ${x%'*b'} ${x#a\\*}", "a b\n");
    prints(
        "unset x; echo \"${x:-'a b'}\" ${x:-\"a  b\"}",
        "'a b' a  b\n",
    );
    ends("set -u; echo $nope; echo not reached", 2);
    assert_eq!(
        run(": ${x:?is missing}; echo no"),
        ("sh: x: is missing\n".to_owned(), 2)
    );
    prints(
        "set -- a b c; shift; echo $1 $# $0; set --; echo $#",
        "b 2 sh\n0\n",
    );
}

#[test]
fn commands_and_arithmetic_are_substituted() {
    prints("echo $(echo a; echo b) `echo \\`echo c\\``", "a b c\n");
    prints(
        "echo \"$(echo \"x  y\")\" $((1 + 2 * 3)) $((x = 4)) $x",
        "x  y 7 4 4\n",
    );
    prints("x=$(false); echo $?; echo $(exit 3) $?", "1\n3\n");
    prints(
        "i=0; while [ $i -lt 3 ]; do i=$((i+1)); done; echo $i",
        "3\n",
    );
    prints("echo $( (echo sub) ) $((echo a) | cat)", "sub a\n");
}

#[test]
fn control_structures_control() {
    prints(
        "if false; then echo a; elif true; then echo b; else echo c; fi",
        "b\n",
    );
    prints(
        "for i in 1 2 3 4; do [ $i = 2 ] && continue; [ $i = 4 ] && break; echo $i; done",
        "1\n3\n",
    );
    prints(
        "for i in a b; do for j in 1 2; do [ $j = 2 ] && continue 2; echo $i$j; done; done",
        "a1\nb1\n",
    );
    prints(
        "case abc in x|y) echo no;; a*) echo yes;; *) echo other;; esac",
        "yes\n",
    );
    prints("case 'a b' in (\"a b\") echo q;; esac", "q\n");
    prints("until true; do echo x; done; ! false && echo ok", "ok\n");
    prints(
        "f() { local x=1; echo $x $1; return 4; }; x=0; f a; echo $? $x",
        "1 a\n4 0\n",
    );
    prints("{ echo a; (cd /; x=5; exit 3); echo $? $x; }", "a\n3\n");
    prints("true && false || echo c; false || true && echo d", "c\nd\n");
}

#[test]
fn pipes_and_redirections_lead_where_they_say() {
    prints("echo a | cat | cat", "a\n");
    prints(
        "echo err >&2 | cat; { echo o; echo e >&2; } 2>&1 | cat",
        "err\no\ne\n",
    );
    prints(
        "printf 'a b\\nc d\\n' | while read x y; do echo $y $x; done",
        "b a\nd c\n",
    );
    prints(
        "cat <<E\n$((1+1)) \\$x\nE\ncat <<'E'\n$x\nE\ncat <<-E\n\ttab\n\tE\n",
        "2 $x\n$x\ntab\n",
    );
    prints("cat <<A; cat <<B\n1\nA\n2\nB", "1\n2\n");
    prints(
        "cat <<< \"x y\"; read a b <<< '1 2 3'; echo $b",
        "x y\n2 3\n",
    );
    prints(
        "echo x >/dev/null; echo y 2>/dev/null; nope 2>/dev/null; echo $?",
        "y\n127\n",
    );
    prints(
        "exec 3>&1; echo three >&3; exec 3>&-; echo $?",
        "three\n0\n",
    );
    prints(
        "false | true; echo $?; set -o pipefail; false | true; echo $?",
        "0\n1\n",
    );
    prints("x=1; echo 2 | read x; echo $x", "1\n");
}

#[test]
fn files_are_written_read_and_globbed() {
    let dir = std::env::temp_dir().join(format!("toolbox-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let script = format!(
        "cd {}; echo one >a.txt; echo two >>a.txt; echo x >b.txt; cat <a.txt; echo *.txt '*.txt' n*; cat *",
        dir.display()
    );
    prints(&script, "one\ntwo\na.txt b.txt *.txt n*\none\ntwo\nx\n");
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn exit_codes_are_a_shells() {
    ends("exit 3", 3);
    ends("(exit 5)", 5);
    ends("nope", 127);
    ends("/", 126);
    ends("if", 2);
    ends("echo a; echo )", 2);
    ends("set -e; false; echo no", 1);
    ends(
        "set -e; false || true; if false; then :; fi; ! true; exit 7",
        7,
    );
    ends("set -e; f() { false; echo no; }; f", 1);
    ends("trap 'exit 9' EXIT; exit 1", 9);
    ends("exec false; true", 1);
    prints("trap 'echo bye $?' EXIT; exit 4", "bye 4\n");
    prints("(trap 'echo sub' EXIT); echo $?", "sub\n0\n");
}

#[test]
fn what_cannot_be_done_is_said() {
    assert_eq!(
        run("cat /x & echo no"),
        ("sh: background jobs are not supported here\n".to_owned(), 2)
    );
    ends("sleep 0 & wait; wait 99", 127);
    ends("trap : TERM INT; sleep 0 & wait $!", 0);
    ends("f() { f; }; f", 2);
    ends(&"(".repeat(1_000), 2);
    ends(&"$(".repeat(1_000), 2);
}

#[test]
fn builtins_keep_the_shells_state() {
    prints(
        "export A=1; env | while read l; do case $l in A=*) echo $l;; esac; done",
        "A=1\n",
    );
    prints(
        "B=2 env | while read l; do case $l in B=*) echo $l;; esac; done; echo \"<$B>\"",
        "B=2\n<>\n",
    );
    prints(
        "eval 'x=5; echo $x'; command -v cd ls; type f 2>/dev/null; echo $?",
        "5\ncd\n/bin/ls\n127\n",
    );
    prints(
        "while getopts ab:c o -a -bx -c y; do echo $o $OPTARG; done; echo $OPTIND",
        "a\nb x\nc\n4\n",
    );
    prints(
        "cd /tmp/..; pwd; cd /nowhere 2>/dev/null; echo $?",
        "/\n2\n",
    );
    prints("readonly r=1; (r=2) 2>/dev/null; echo $? $r", "2 1\n");
    prints(
        "[[ abc == a* && 1 -lt 2 ]] && echo yes; [[ 'a*' == 'a*' ]] && echo yes; x='a b'; [[ $x = 'a b' ]] && echo yes",
        "yes\nyes\nyes\n",
    );
    prints("set -x; echo a", "+ echo a\na\n");
}

#[test]
fn nothing_has_no_name() {
    let dir = std::env::temp_dir().join(format!("toolbox-unnamed-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let within = |script: &str, expected: &str| {
        prints(
            &format!("cd {} && touch a; {script}", dir.display()),
            expected,
        );
    };
    within("rm -rf \"$unset\"; ls", "a\n");
    within("rm -rf . .. ./ / 2>/dev/null; echo $?; ls", "1\na\n");
    within(
        "for t in e d r w x s; do [ -$t \"\" ] || printf $t; done",
        "edrwxs",
    );
    within("mv \"\" b 2>/dev/null; echo $?; ls", "1\na\n");
    within("cp -r \"\" b 2>/dev/null; echo $?; ls", "1\na\n");
    within("cat 2>/dev/null < \"\"; echo $?", "1\n");
    within("find \"\" 2>/dev/null; ls \"\" 2>/dev/null; echo $?", "1\n");
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_writer_whose_words_fit_the_pipe_has_not_failed() {
    for reader in ["grep -q a", "head -n1 >/dev/null", "sed -n 1q", "true"] {
        ends(&format!("set -o pipefail; echo a | {reader}"), 0);
        ends(&format!("set -o pipefail; printf 'a\\nb\\n' | {reader}"), 0);
    }
    prints(
        "set -eo pipefail; v=$(printf '1\\n2\\n' | head -n1); echo $v",
        "1\n",
    );
    prints(
        "{ echo a; echo b; echo cleaned >&2; } | head -n1",
        "a\ncleaned\n",
    );
    ends("set -o pipefail; yes | head -n1 >/dev/null", 141);
    // A reader that is a process would be gone after a wait.
    ends(
        "{ echo a; sleep 0.01; echo b; echo never >&2; } | head -n1",
        0,
    );
    prints(
        "{ echo a; sleep 0.01; echo b; echo never >&2; } | head -n1",
        "a\n",
    );
}

#[test]
fn what_could_not_be_written_is_no_success() {
    if !std::path::Path::new("/dev/full").exists() {
        return;
    }
    for writer in [
        "echo a",
        "printf a",
        "cat",
        "head -n1",
        "sed s/a/b/",
        "sort",
        "wc -l",
        "tr a b",
        "gzip -c",
        "base64",
    ] {
        ends(&format!("echo a | {writer} >/dev/full"), 1);
    }
    ends("echo a | tee /dev/full", 1);
    ends("echo a | sort -o /dev/full", 1);
    // Each command answers for its own.
    prints("echo a >/dev/full || echo lost; echo $?", "lost\n0\n");
    ends(
        "find /dev/null -exec sh -c 'echo a >/dev/full || true' ';'",
        0,
    );
}

#[test]
fn values_that_are_declared_are_not_split() {
    prints("f() { local m=$1; echo \"$m\"; }; f 'a  b'", "a  b\n");
    prints("export D=$(echo 1 2); echo \"$D\"", "1 2\n");
    prints("x='* *'; readonly y=$x z; echo \"$y\"", "* *\n");
    prints("HOME=/h; export p=~/x; echo $p", "/h/x\n");
    prints("x='a=1 b=2'; export $x; echo $a$b", "12\n");
}

#[test]
fn an_option_behind_c_is_not_the_script() {
    let ran = |args: &[&str]| {
        let gathered = Rc::new(RefCell::new(Vec::new()));
        let mut context = Context::from_outside();
        context.stdout = Output::Gather(Rc::clone(&gathered));
        context.stderr = context.stdout.clone();
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let code = applets::run(&mut context, "sh", &args);
        (code, String::from_utf8(gathered.take()).unwrap())
    };
    assert_eq!(ran(&["-ce", "false; echo no"]), (1, String::new()));
    assert_eq!(ran(&["-cx", "echo a"]), (0, "+ echo a\na\n".to_owned()));
    assert_eq!(
        ran(&["-c", "-e", "echo $0 $1; false; echo no", "n", "x"]),
        (1, "n x\n".to_owned())
    );
    assert_eq!(ran(&["-eo", "pipefail", "-c", "false | true"]).0, 1);
    assert_eq!(ran(&["-c"]).0, 2);
}

#[test]
fn redirections_end_with_their_command_however_it_ends() {
    let mut context = Context::from_outside();
    let gathered = Rc::new(RefCell::new(Vec::new()));
    context.stdin = Input::bytes(
        b"{ :; } >/dev/null 2>${no?}\necho seen\nreadonly r=1\nx=2 r=2 true\necho \"<$x>\"\n"
            .to_vec(),
    );
    context.stdout = Output::Gather(Rc::clone(&gathered));
    context.stderr = Output::Null;
    applets::run(&mut context, "sh", &["-i".to_owned()]);
    assert_eq!(String::from_utf8(gathered.take()).unwrap(), "seen\n<>\n");
}

#[test]
fn bytes_are_written_as_they_are_said() {
    prints(
        "printf '\\377' | wc -c; echo -ne '\\xff\\xfe' | wc -c",
        "1\n2\n",
    );
}

#[test]
fn large_files_are_compared_to_their_end() {
    let dir = std::env::temp_dir().join(format!("toolbox-cmp-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let mut bytes = vec![7; 9 << 20];
    std::fs::write(dir.join("a"), &bytes).unwrap();
    bytes.push(8);
    std::fs::write(dir.join("b"), &bytes).unwrap();
    bytes[(9 << 20) - 1] = 9;
    std::fs::write(dir.join("c"), &bytes).unwrap();
    let dir = dir.display();
    ends(&format!("cd {dir}; cmp -s a a"), 0);
    prints(&format!("cd {dir}; cmp a b"), "cmp: EOF on a\n");
    prints(
        &format!("cd {dir}; cmp b c; rm -r {dir}"),
        "b c differ: byte 9437184, line 1\n",
    );
}

#[test]
fn what_never_ends_ends_when_nobody_reads_it() {
    prints("while true; do echo x; done | head -n 2", "x\nx\n");
    prints("yes | while read x; do echo $x; done | head -n 2", "y\ny\n");
    prints(
        "yes | while read x; do echo $x; break; done; echo $?",
        "y\n0\n",
    );
    prints(
        "yes | while IFS= read -r x; do exit 4; done; echo $?",
        "4\n",
    );
    prints(
        "i=0; yes no | sed 's/n/g/' | while read x; do i=$((i+1)); [ $i = 3 ] && break; echo $x$i; done",
        "go1\ngo2\n",
    );
    prints(
        "printf 'a\\\\\nb\nc' | while read x; do echo \"<$x>\"; done; echo $?",
        "<ab>\n0\n",
    );
    prints(
        "printf '1\n2\n3\n4\n' | while read a; do read b; echo $a-$b; done",
        "1-2\n3-4\n",
    );
}
