//! Skiff's layers and umoci's bundle of the same image are the same tree.

use std::path::Path;
use std::process::Command;

use crate::support::*;

/// Everything that `stat` and `getfattr` would tell, one line for each file.
const LIST: &str = "import os,sys,stat
root=sys.argv[1]
for d,ds,fs in os.walk(root):
  for n in sorted(ds+fs+['.']):
    if n=='.' and d!=root: continue
    p=os.path.join(d,n); s=os.lstat(p); r=os.path.relpath(p,root)
    x=sorted((a,os.getxattr(p,a,follow_symlinks=False)) for a in os.listxattr(p,follow_symlinks=False) if not a.startswith('trusted.overlay'))
    c=open(p,'rb').read() if stat.S_ISREG(s.st_mode) else os.readlink(p) if stat.S_ISLNK(s.st_mode) else ''
    links=s.st_nlink if stat.S_ISREG(s.st_mode) else 0
    t=s.st_mtime_ns if not stat.S_ISDIR(s.st_mode) else 0
    print(r,oct(s.st_mode),s.st_uid,s.st_gid,s.st_rdev,links,t,x,c)
";

fn run(script: &str, dir: &Path) {
    let output = Command::new("sh").args(["-euc", script]).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn umoci_unpacks_the_same() {
    let place = Place::new();
    let dir = place.dir.path();
    std::fs::write(dir.join("list.py"), LIST).unwrap();
    // Three layers, made by umoci from changes to a root directory.
    run(
        "umoci init --layout img; umoci new --image img:t; umoci unpack --image img:t b; cd b/rootfs
         mkdir -p etc usr/bin var/cache/old opt/gone tmp; chmod 1777 tmp; chmod 755 .
         echo one > etc/one; echo two > etc/two; cp /bin/true usr/bin/tool; chmod 4755 usr/bin/tool
         ln etc/one etc/hard; ln -s one etc/soft; ln -s /etc abs; mkfifo var/fifo; mknod var/null c 1 3
         setfattr -n user.note -v hello etc/two || python3 -c \"import os; os.setxattr('etc/two','user.note',b'hello')\"
         echo x > var/cache/old/x; echo y > opt/gone/y; chown -R 1000:100 opt; touch -d '2001-02-03 04:05:06.789' etc/two
         cd ../..; umoci repack --image img:t b; rm -rf b; umoci unpack --image img:t b; cd b/rootfs
         rm etc/hard; rm -r opt/gone var/cache/old; mkdir var/cache/old; echo z > var/cache/old/z
         rm etc/soft; mkdir etc/soft; echo in > etc/soft/in; echo more >> etc/one; ln -s usr/bin bin; chmod 700 etc
         cd ../..; umoci repack --image img:t b; rm -rf b; umoci unpack --image img:t b; cd b/rootfs
         rm -r etc/soft; echo file > etc/soft; rm var/fifo; mkdir opt/gone; echo w > opt/gone/w
         cd ../..; umoci repack --image img:t b; rm -rf b; umoci unpack --image img:t b",
        dir,
    );
    let image = place.pull(&format!("oci:{}:t", dir.join("img").display())).await.unwrap();
    // A fix-up layer may be on top.
    let of_archives = image.layers.iter().filter(|layer| !layer.starts_with(place.path("state/chains")));
    assert_eq!(of_archives.count(), 3);
    let lower: Vec<String> = image.layers.iter().rev().map(|l| l.display().to_string()).collect();
    std::fs::create_dir(dir.join("merged")).unwrap();
    // In a mount namespace of its own: nothing is left when the command ends.
    run(
        &format!(
            "unshare --mount --propagation private sh -euc 'mount -t overlay none -o ro,lowerdir={} merged
             python3 list.py merged > skiff.txt'; python3 list.py b/rootfs > umoci.txt",
            lower.join(":")
        ),
        dir,
    );
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    let (skiff, umoci) = (read("skiff.txt"), read("umoci.txt"));
    assert!(umoci.lines().count() > 15, "{umoci}");
    for (ours, theirs) in skiff.lines().zip(umoci.lines()) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(skiff.lines().count(), umoci.lines().count());
}
