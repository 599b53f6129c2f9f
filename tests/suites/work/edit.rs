//! Editing files and databases.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use super::script;
use crate::mounts;
use crate::needs_fuse;
use crate::suites::{Stand, tool};

#[test]
fn vim_saves_with_backup_and_swap_and_recovers_what_was_not_saved() {
    // Guards against the ways an editor saves: a renamed backup or a copied one, attributes and
    // links kept, a swap file that is locked, synced and found again.
    needs_fuse!();
    if tool("vim").is_none() {
        return;
    }
    let stand = Stand::new();
    let vault = stand.volume.vault();
    // Vim makes no backups below /tmp unless it is told to.
    let vim = "vim -es -u NONE -i NONE -N --cmd 'set swapfile directory=. backupskip='";
    let text = script(
        &vault,
        &format!(
            "seq 2000 > f; chmod 640 f; ln f hard; ln -s f soft
             {vim} -c 'set backup backupcopy=yes backupext=.bak' -c '%s/^7$/seven/' -c wq soft
             cat hard soft.bak | sed -n '7p;2007p'; stat -c '%h %a' f; test -L soft
             {vim} -c 'set backup backupcopy=no backupext=.old' -c '%s/^8$/eight/' -c wq f
             sed -n 8p f; sed -n 8p hard; sed -n 8p f.old; stat -c %a f; ls -A | sort | tr '\\n' ' '"
        ),
    );
    let expected = "seven\n7\n2 640\neight\n8\n8\n640\nf f.old hard soft soft.bak ";
    assert_eq!(text, expected);
    // Killed with unsaved changes: the swap file has them.
    let mut editor = Command::new("vim")
        .args(["-es", "-u", "NONE", "-i", "NONE", "-N", "-c", "set swapfile directory=.", "f"])
        .current_dir(&vault)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("vim runs");
    let mut input = editor.stdin.take().expect("piped");
    writeln!(input, "1s/1/unsaved/\npreserve\n!touch edited").expect("vim reads");
    mounts::wait_until("the change is in the swap file", || vault.join("edited").exists());
    let swap = fs::read_dir(&vault).expect("lists").filter_map(Result::ok);
    assert!(swap.into_iter().any(|e| e.file_name() == ".f.swp"), "there is a swap file");
    editor.kill().expect("it lives");
    editor.wait().expect("it ended");
    let recovered =
        script(&vault, &format!("{vim} -r f -c 'w! recovered' -c 'qa!' || :; head -1 recovered f"));
    assert!(recovered.contains("unsaved"), "{recovered}");
    stand.close();
}

#[test]
fn a_database_killed_in_a_transaction_has_what_was_committed() {
    // Guards against a transaction that is half there after the daemon was killed in the middle
    // of it, in both ways SQLite keeps its journal. tests/daemon/kill9.rs does this at random moments.
    needs_fuse!();
    for mode in ["delete", "wal"] {
        let stand = Stand::new();
        let v = &stand.volume;
        let sqlite = |sql: &str| script(&v.vault(), &format!("sqlite3 db \"{sql}\""));
        sqlite(&format!(
            "PRAGMA journal_mode={mode}; CREATE TABLE t(n INTEGER PRIMARY KEY, filler);
             INSERT INTO t VALUES(1, randomblob(100000));"
        ));
        let mut writer = Command::new("sqlite3")
            .args(["-batch", "db"])
            .current_dir(v.vault())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("sqlite3 runs");
        let mut input = writer.stdin.take().expect("piped");
        // A cache of a few pages, so that the open transaction is in the file already.
        write!(
            input,
            "PRAGMA cache_size=10; PRAGMA synchronous=FULL; INSERT INTO t VALUES(2, 'committed');
             BEGIN; WITH RECURSIVE c(n) AS (SELECT 3 UNION ALL SELECT n+1 FROM c WHERE n<3000)
             INSERT INTO t SELECT n, randomblob(500) FROM c; UPDATE t SET filler='torn' WHERE n<3;
             SELECT writefile('reached', 'x');\n"
        )
        .expect("sqlite3 reads");
        input.flush().expect("sqlite3 reads");
        mounts::wait_until("the transaction is open", || v.at("reached").exists());
        v.crash();
        writer.kill().expect("it lives");
        writer.wait().expect("it ended");
        v.mount(&[]);
        let found = sqlite("PRAGMA integrity_check; SELECT n, length(filler) FROM t;");
        assert_eq!(found, "ok\n1|100000\n2|9\n", "{mode}");
        sqlite("INSERT INTO t VALUES(3, 'after');");
        stand.move_elsewhere();
        assert_eq!(sqlite("PRAGMA integrity_check; SELECT count(*) FROM t;"), "ok\n3\n", "{mode}");
        stand.close();
    }
}
