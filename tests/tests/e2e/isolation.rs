//! Two users' jobs at once on the same nodes: neither gets at anything of the other.

use anyhow::{Context, Result, ensure};
use burstfs_tests::{Job, SOON, Scenario, scenario};

fn waiting<'a>(s: &Scenario<'a>, user: &str) -> Result<Job<'a>> {
    let dir = s.dir(user)?;
    let job = s.job(user)?.burstfs("capacity=400MiB").burstfs(format!("stage_out source=/out/ destination={dir}/out"));
    job.script("umask 0; mkdir $BURSTFS/out; echo secret > $BURSTFS/out/$USER; chmod 777 $BURSTFS; echo written; until [ -e go ]; do sleep 0.05; done")
        .submit()
}

/// What `user` sees when he tries `script` on `node`: nothing, and he is told so.
fn ensure_denied(s: &Scenario<'_>, node: &str, user: &str, script: &str) -> Result<()> {
    let output = s.cluster.try_sh_as(node, user, script)?;
    ensure!(!output.status.success() && output.stdout.is_empty(), "{user} on {node}: {script}: {output:?}");
    Ok(())
}

#[test]
fn two_users_on_the_same_nodes() -> Result<()> {
    scenario("two-users", |s| {
        // Refused strangers are named in the logs of those who refused them.
        s.allow("refused");
        s.allow("E208");
        let (alices, bobs) = (waiting(s, "alice")?, waiting(s, "bob")?);
        alices.wait_line("written")?;
        bobs.wait_line("written")?;
        for node in burstfs_tests::NODES {
            for (spy, victim) in [("bob", &alices), ("alice", &bobs)] {
                let instance = victim.instance(0)?;
                ensure_denied(s, node, spy, &format!("cat /burstfs/{}/out/*", victim.id))?;
                ensure_denied(s, node, spy, &format!("ls /local/burstfs/{instance}/data"))?;
                ensure_denied(s, node, spy, "ls /local/burstfs")?;
                ensure_denied(
                    s,
                    node,
                    spy,
                    &format!("cat /local/burstfs/{instance}/description.json /local/burstfs/{instance}/journal"),
                )?;
                ensure_denied(s, node, spy, &format!("ls /run/burstfs/{instance}"))?;
                ensure_denied(s, node, spy, &format!("burstfs status -h -j {}", victim.id))?;
                ensure_denied(s, node, spy, "cat /var/log/burstfs/*.log")?;
            }
            strangers_learn_nothing(s, node)?;
            let environment = "for p in $(pgrep -u alice); do cat /proc/$p/environ /proc/$p/maps; ls /proc/$p/fd; done 2>/dev/null; false";
            ensure_denied(s, node, "bob", environment)?;
        }
        for job in [&alices, &bobs] {
            job.touch("go")?;
        }
        for (job, user) in [(&alices, "alice"), (&bobs, "bob")] {
            job.wait_success(SOON)?;
            job.receipt()?.ensure_complete()?;
            ensure!(std::fs::read_to_string(s.path(user)?.join("out").join(user))? == "secret\n");
        }
        Ok(())
    })
}

/// Whoever connects to a port of burstfs and sends what he likes is told nothing and keeps nobody from working.
fn strangers_learn_nothing(s: &Scenario<'_>, node: &str) -> Result<()> {
    let ports = s.cluster.sh(node, "ss -Hltn | awk '{ print $4 }' | grep -vE ':681[78]$' || true")?;
    for address in ports.lines() {
        let port: u16 = address.rsplit(':').next().context("no port")?.parse()?;
        let host = if address.starts_with("127.") { "127.0.0.1" } else { node };
        let script = format!(
            "exec 3<>/dev/tcp/{host}/{port} || exit 0; head -c 100000 /dev/urandom >&3 2>/dev/null; timeout 20 head -c 100000 <&3 | strings -n 6"
        );
        let output = s.cluster.try_sh_as(node, "bob", &format!("bash -c '{script}'"))?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(!said.contains("alice") && !said.contains("/pfs"), "{node}:{port} tells a stranger: {said}");
    }
    Ok(())
}

#[test]
fn the_next_user_finds_nothing() -> Result<()> {
    scenario("next-user", |s| {
        let first = s.job("alice")?.burstfs("capacity=200MiB").script("echo secret > $BURSTFS/file").submit()?;
        first.wait_success(SOON)?;
        let second = s.job("bob")?.burstfs("capacity=200MiB");
        let second = second
            .script("srun sh -c 'ls -A $BURSTFS; ls /burstfs; ls /local/burstfs 2>/dev/null || true' | sort -u")
            .submit()?;
        second.wait_success(SOON)?;
        // Every instance has the ready-made directories.
        ensure!(second.output()? == format!(".layout\n{}\n", second.id), "{}", second.output()?);
        Ok(())
    })
}

#[test]
fn supplementary_groups_count() -> Result<()> {
    scenario("groups", |s| {
        // Input that alice may read only because she is in the group `science`.
        let dir = s.dir("alice")?;
        let path = s.path("alice")?.join("shared");
        std::fs::write(&path, "for the group\n")?;
        std::os::unix::fs::chown(&path, Some(0), Some(7100))?;
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o440))?;
        let job = s.job("alice")?.nodes(2).burstfs("capacity=100MiB");
        let job = job.burstfs(format!("stage_in source={dir}/shared destination=/shared preserve=times"));
        let job = job.script("cat $BURSTFS/shared").submit()?;
        job.wait_success(SOON)?;
        ensure!(job.output()?.contains("for the group"), "{}", job.output()?);
        Ok(())
    })
}
