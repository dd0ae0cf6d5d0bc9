#!/bin/sh
# Courier puts quotes around a name in From, To or Cc that is an encoded word (RFC 2047) whose first character is encoded:
# it takes the "?=" in "=?utf-8?q?=C3=84nne?=" for the word's end, so it seems. A name that begins with an ASCII letter,
# "=?utf-8?q?B=C3=B6b?=", stays as it came, and so does one in base64.
#
# RFC 2047 section 5 (3): "An 'encoded-word' MUST NOT appear within a 'quoted-string'". So what was a name is shown as
# "=?utf-8?q?...?=", and since these fields are signed as a rule, a DKIM signature that was sound on the wire is broken in
# the mailbox. The mail is for a user of the server itself; nothing is forwarded.
#
# Seen with Debian's courier-mta 1.0.16-3+b6 as it is installed, one local domain and user added:
#   sent   To: =?utf-8?q?=C3=84nne?= <ann@here.test>
#   stored To: "=?utf-8?q?=C3=84nne?=" <ann@here.test>
# Exit code 1 if that changes.
# Needs: Debian 12 on amd64, python3, and root for unshare and mount: Courier has fixed paths and users of its own, so it is
# installed into an overlay in memory over this machine's files, in namespaces that end with this script.
set -eu
if [ "${1:-}" != inside ]; then
    exec unshare --mount --uts --pid --fork --kill-child sh "$0" inside
fi
top=$(mktemp -d)
mount -t tmpfs -o mode=755 finding "$top"
mkdir "$top/up" "$top/work" "$top/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$top/up,workdir=$top/work" "$top/root"
mount --rbind /dev "$top/root/dev"
mount -t proc proc "$top/root/proc"
mount -t tmpfs -o mode=755 finding-run "$top/root/run"
cp --remove-destination -L /etc/resolv.conf "$top/root/etc/resolv.conf"
printf '#!/bin/sh\nexit 101\n' > "$top/root/usr/sbin/policy-rc.d"
chmod 755 "$top/root/usr/sbin/policy-rc.d"
hostname mx.here.test
chroot "$top/root" sh -eu <<'INSIDE'
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update >/dev/null 2>&1 || true
apt-get -qq --no-install-recommends install courier-mta=1.0.16-3+b6 >/install.log 2>&1 || { tail /install.log; exit 2; }
printf '127.0.0.1 localhost mx.here.test\n' > /etc/hosts
useradd --create-home ann
su ann -c 'maildirmake ~/Maildir'
echo mx.here.test > /etc/courier/me
printf 'localhost\nhere.test\n' > /etc/courier/locals
echo here.test > /etc/courier/esmtpacceptmailfor.dir/here.test
port=$(python3 -c 'import socket; s = socket.create_server(("127.0.0.1", 0)); print(s.getsockname()[1])')
sed -i -e "s/^PORT=.*/PORT=127.0.0.1.$port/" -e 's/^BOFHCHECKDNS=.*/BOFHCHECKDNS=0/' /etc/courier/esmtpd
mkdir -p /run/courier/authdaemon
chown root:courier /run/courier
chown courier:courier /run/courier/authdaemon
chmod 775 /run/courier
chmod 750 /run/courier/authdaemon
(makesmtpaccess; makeacceptmailfor; makehosteddomains; makealiases) >/dev/null 2>&1
authdaemond start
courierfilter start
courier start
sleep 1
esmtpd start
python3 - "$port" <<'PYTHON'
import pathlib, re, smtplib, sys, time

SENT = (
    "From: =?utf-8?q?=C3=96b?= <bob@there.test>\n"
    "Reply-To: =?utf-8?q?B=C3=B6b?= <bob@there.test>\n"
    "To: =?utf-8?q?=C3=84nne?= <ann@here.test>\n"
    "Cc: =?utf-8?b?w4RubmU=?= <anne@there.test>, =?utf-8?q?D=C3=B6rte?= <doris@there.test>\n"
)
KEPT = ("From", "Reply-To", "To", "Cc")
for attempt in range(50):
    try:
        client = smtplib.SMTP("127.0.0.1", int(sys.argv[1]), timeout=20)
        break
    except OSError:
        time.sleep(0.2)
client.sendmail("bob@there.test", ["ann@here.test"], SENT + "Date: Mon, 1 Jun 2026 12:00:00 +0000\nSubject: x\n\nx\n")
client.quit()
for attempt in range(100):
    if found := list(pathlib.Path("~ann/Maildir/new").expanduser().iterdir()):
        break
    time.sleep(0.2)
# Unfolded: it folds Cc anew, at each comma.
lines = re.sub(r"\n[ \t]+", " ", found[0].read_text().partition("\n\n")[0]).splitlines()
stored = [line for line in lines if line.partition(":")[0] in KEPT]
print("\n".join(stored))
expected = SENT.splitlines()
expected[0] = 'From: "=?utf-8?q?=C3=96b?=" <bob@there.test>'
expected[2] = 'To: "=?utf-8?q?=C3=84nne?=" <ann@here.test>'
sys.exit(stored != expected)
PYTHON
INSIDE
