"""Courier, as Debian's package makes it: mail for its domain goes to Maildirs of Unix users."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar

from tests.interop.layer import WORK, Layer
from tests.interop.place import DOMAIN, HOST, REFUSE, REFUSE_HEADER, SENDER_ADDRESS, Place
from tests.interop.remote import DebianServer, StoredMessage, maildir_messages

# courierfilter(8): the names of the content's and the control files, a line each, then an empty line; a reply.
_FILTER = f"""#!/usr/bin/perl
use strict; use Socket;
open(my $ready, '>&=', 3);
my ($new, $path) = ('/var/lib/courier/allfilters/.refuse', '/var/lib/courier/allfilters/refuse');
unlink $new, $path;
socket(my $server, PF_UNIX, SOCK_STREAM, 0) or die; bind($server, sockaddr_un($new)) or die; listen($server, 50) or die;
chmod 0666, $new; rename($new, $path) or die; close $ready;
while (accept(my $client, $server)) {{
    my @files;
    while (my $line = <$client>) {{ chomp $line; last if $line eq ''; push @files, $line; }}
    open(my $content, '<', $files[0]) or die; local $/; my $text = <$content>;
    print $client $text =~ /^{REFUSE_HEADER}: {REFUSE}/m ? "550 5.7.1 Not wanted here\\n" : "200 Ok\\n";
    close $client;
}}
"""

_RELAY = f"""printf '{SENDER_ADDRESS}\\tallow,RELAYCLIENT\\n' >> /etc/courier/smtpaccess/default
        echo 3s > /etc/courier/warntime; echo 3s > /etc/courier/retryalpha; echo 3s > /etc/courier/retrybeta
"""


class Courier(DebianServer):
    name: ClassVar = "courier"
    title: ClassVar = "Courier"
    how: ClassVar = (
        "Debian's configuration for one domain, a certificate in `esmtpd.pem`, a global filter that refuses; `TARPIT=0`"
    )
    layer: ClassVar = Layer("courier", ["courier-mta"])
    rewrites: ClassVar = "puts quotes around a name that is an encoded word and begins with an encoded character"

    def script(self, place: Place) -> str:
        place.write("refuse", _FILTER, mode=0o755)
        return f"""
        echo {HOST} > /etc/courier/me
        printf 'localhost\\n{HOST}\\n{DOMAIN}\\n' > /etc/courier/locals
        printf '{DOMAIN}\\n' > /etc/courier/esmtpacceptmailfor.dir/{DOMAIN}
        cp {WORK}/both.pem /etc/courier/esmtpd.pem
        chown courier /etc/courier/esmtpd.pem; chmod 600 /etc/courier/esmtpd.pem
        for home in /srv/users/good* /srv/users/picky; do
            user=${{home##*/}}; mkdir {WORK}/mail/$user; chown $user {WORK}/mail/$user; rm -rf $home
            ln -s {WORK}/mail/$user $home; setpriv --reuid $user --clear-groups maildirmake {WORK}/mail/$user/Maildir
        done
        mkdir -p /run/courier/authdaemon; chown root:courier /run/courier; chown courier:courier /run/courier/authdaemon
        chmod 775 /run/courier; chmod 750 /run/courier/authdaemon
        cp {WORK}/refuse /usr/lib/courier/filters/refuse
        ln -sf /usr/lib/courier/filters/refuse /etc/courier/filters/active/refuse
        sed -i 's/^TARPIT=.*/TARPIT=0/' /etc/courier/esmtpd
        {_RELAY if place.is_relay else ""}
        makesmtpaccess; makeacceptmailfor; makehosteddomains; makealiases
        authdaemond start; courierfilter start; courier start; sleep 1; esmtpd start
        exec sleep infinity
        """

    def stored(self, place: Place) -> Iterator[StoredMessage]:
        return maildir_messages(place.mail, "Maildir")

    def original(self, octets: bytes) -> bytes:
        head, mark, body = octets.partition(b"\r\n\r\n")
        return re.sub(rb'"(=\?[^"]*\?=)"', rb"\1", head) + mark + body


SERVER = Courier()
