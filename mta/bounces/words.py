"""Words by which mail that came back is known, in the languages that bounces and absences are written in."""

from __future__ import annotations

from typing import Final

import re2


def _any(*patterns: str) -> re2._Regexp:
    options = re2.Options()
    options.case_sensitive = False
    options.log_errors = False
    options.max_mem = 32 << 20
    return re2.compile("|".join(f"(?:{pattern})" for pattern in patterns), options)


# --- who sends bounces, and under which subjects -------------------------------------------------

BOUNCER: Final = _any(
    r"mailer[-_. ]?daemon",
    r"\bpost[-_]?(master|office)\b",
    r"mail[-_ ]?(deliver|system|administrator|server|router|daemon|transport)",
    r"^\W*(mail[-_ ]?)?daemon\b",
    r"\bmailer@",
    r"(^|<)bounces?[@+-]",
    r"delivery[-_ ]?(system|service|subsystem|status|failure|notification)",
    r"no-?reply@sns\.amazonaws",
    r"\bmmdf\b",
    r"mail-?gateway",
    r"mrelay",
    r"internet[-_ ]mail",
    r"microsoft ?exchange",
    r"smtp[-_ ]?(server|daemon|gateway)",
    r"mdaemon",
    r"(system|mail|e-?mail) (attendant|administrator|admin)\b",
)
# How reports of mail systems begin, whoever sends them on.
REPORT_TITLE: Final = _any(
    r"non-?delivery report",
    r"delivery (status|failure) (notification|report)",
    r"created automatically by (the )?mail delivery",
    r"this is the (\w+ ){0,3}(mail|delivery|deliver) (system|program|subsystem)",
    r"this is the (postfix|qmail)",
    r"this message was undeliverable due to",
    r"the following addresses had (permanent|delivery|transient)",
    r"message from interscan",
)
# A program, perhaps: it takes more than a subject to believe it.
MACHINE: Final = _any(
    r"no-?_?reply",
    r"do-?not-?reply",
    r"\b(system|administrator|admin|root|daemon|gateway|server|mail|smtp|security|anti-?spam|filter|virus)\b",
    r"defang|viruswall|firewall|interscan|mailscanner|mailsweeper|scanmail|mailmarshal|amavis",
    r"\b(alert|notifications?|returned|undeliver\w*)\b",
)
# The list server of a mailing list, which refuses a message.
LIST_REFUSAL: Final = _any(
    r"^loop alert",
    r"ignored (ml )?(mail|message)",
    r"(post|message|mail)\w*( \w+){0,3} (rejected|denied|refused)( \w+){0,2} (non-?|not )( \w+)?member",
    r"you are not (a )?(list )?member|not a member of (this|the) (list|group|mailing)",
)
# An answer to somebody, a note passed on, a post to a list: people speak of bounces as well.
SPOKEN_OF: Final = re2.compile(r"(?i)^\s*(?:(?:re|aw|sv|antw|fwd?|wg|tr|rv|i|enc)\s*(?:\[\d+\])?:|\[[^\]]{1,80}\])")

BOUNCE_SUBJECT: Final = _any(
    r"undeliver",
    r"non[- ]?deliver",
    r"not[- ]?deliver",
    r"returned (mail|to sender|e-?mail|message)",
    r"^returned\b",
    r"(failure|failed|error|problem|status)( notice| notification)?.{0,20}(deliver|mail|message|send)",
    r"(deliver|mail|message|send)\w*.{0,30}(fail|error|problem|impossible|status|report|return|reject|delay|incident)",
    r"failure notice",
    r"delivery notification",
    r"mail system error",
    r"could not (be )?(send|sent|deliver)",
    r"bounce",
    r"unzustellbar",
    r"nicht zugestellt",
    r"zustell\w*.{0,20}(fehl|status|problem)",
    r"fehlgeschlagen",
    r"rücksendung",
    r"non remis",
    r"échec",
    r"echec",
    r"non (distribu|d[ée]livr)",
    r"impossible de remettre",
    r"retour",
    r"no (se )?(entreg|pudo)",
    r"devuelto",
    r"fall[oó] en la entrega",
    r"não (foi )?entreg",
    r"falha",
    r"mancat",
    r"mancato recapito",
    r"impossibile (consegnare|recapitare)",
    r"配信(不能|エラー|失敗)",
    r"送信(エラー|できません)",
    r"退信",
    r"无法(投递|送达)",
    r"недостав|(ошибка|сбой|отказ)( при| в)? ?доставк",
    r"не доставлен",
    r"deliver\w*.{0,30}warn",
    r"delayed (mail|message|e-?mail|delivery)",
    r"メール.{0,10}エラー",
    r"postponed",
    r"rejected",
    r"warning: (could not|message)",
    r"user unknown",
    r"no such (user|address)",
    r"mail could not",
    r"^nondeliverable",
    r"^ndn\b",
    r"recapit",
    r"unknown address",
    r"notificación de estado",
    r"quota",
    r"mailbox full",
    r"message status",
    r"inlieferung",
)
# What a text says that is a bounce; one of these is needed where neither report nor header says so.
BOUNCE_TEXT: Final = _any(
    r"(could|can|was|were|is|has)( ?n.t| not)( \w+){0,2} (be )?(deliver|sent|send|transmit|reach|complet|relay)",
    r"delays? (in|of) (the |your )?deliver",
    r"un(able|successful)( \w+){0,4} (to )?(deliver|relay|send|transmit|reach|complete)",
    r"undeliver",
    r"non[- ]?deliver",
    r"deliver\w*( \w+){0,6} (fail|error|problem|impossible|unsuccess|delay|suspend)",
    r"fail\w*( \w+){0,6} (deliver|recipient|address)",
    r"permanent(ly)? (fatal )?(error|failure|reject)",
    r"(fatal|transient|temporary) (error|failure)",
    r"returned to (the |its )?sender",
    r"user( \w+)? (unknown|not found|does ?n.t exist|not known)",
    r"unknown (user|recipient|address|local|mailbox)",
    r"no (such|mailbox)",
    r"(does|do|did) ?(n.t|not) (exist|have)",
    r"not a (valid|known)( \w+)? (user|address|recipient|mailbox|account)",
    r"mailbox( \w+){0,3} (full|exceed|disabled|inactive|unavailable|unknown)",
    r"over( \w+)? quota|quota( \w+){0,2} exceed",
    r"invalid (recipient|address|user|mailbox)",
    r"(account|address|user|recipient|mailbox)( \w+){0,6} (disabled|inactive|invalid|suspended|closed|rejected)",
    r"(account|address|user|recipient|mailbox)( \w+){0,6} (refused|expired|unavailable|removed)",
    r"(rejected|refused|bounced|blocked)( \w+){0,4} (by|your|message|mail|recipient|because|address)",
    r"\b5\d\d[ -]\d?\.?\d?\.?\d? ?\w",
    r"host (unknown|not found)",
    r"postponed|full mailbox",
    r"not our customer",
    r"message( \w+){0,4} (reject|return|bounce|expire|fail)",
    r"could not find",
    r"will keep trying",
    r"still undelivered|not yet been delivered",
    r"unzustellbar|nicht zugestellt|konnte nicht|unbekannt",
    r"n.a pas pu|inconnu|n.existe pas|non remis",
    r"no (se )?(pudo|existe)|desconocid",
    r"não (foi|existe|pôde)",
    r"non (è stato|esiste)|sconosciut|impossibile",
    r"存在しません|配信|不明|お届け",
    r"不存在|无法|失败|退回",
    r"не (существует|удалось|найден|доставлен)",
)

# It was not delivered yet, and the server goes on trying;
WARNING: Final = _any(
    r"warning message only",
    r"not yet been delivered|still undelivered|still awaiting delivery|(message|mail) is delayed",
    r"(will|shall) (keep|continue|go on) (trying|to try|retrying)|attempts will continue",
    r"will be retried|will try again",
    r"(message|mail|delivery)( \w+){0,2} (has been |is |was )?delayed",
    r"^warning: (could not send|message)",
    r"you do not need to resend|no action is required on your part",
    r"delivery status notification \(delay\)",
)
# or it does not.
GIVEN_UP: Final = _any(
    r"(have|has|.ve|is|are|am) (given|giving) up|giving up\b",
    r"permanent|permanently|fatal error",
    r"(no|not|never)( \w+){0,4} (try|tries|attempts?|retr(y|ies))",
    r"(final|last) (attempt|try)( \w+)? failed|retry timeout|too long in",
)

# --- automatic answers ------------------------------------------------------------------------------

ABSENT_SUBJECT: Final = _any(
    r"out[- ]of[- ](the )?office",
    r"\bOOO\b",
    r"auto(matic|mated)?[-_ ]?(re(ply|sponse|spond)|answer|antwort)",
    r"^auto(svar)?:",
    r"\bautoreply",
    r"away from",
    r"(on|in|am) (annual |sick |parental |maternity )?(vacation|holiday|leave)\b",
    r"^(re: ?)?vacation(:|$| (re(ply|sponse)|message|notice|auto))",
    r"absen(ce|t|za|cia)|ausente|assente|aus[eê]ncia",
    r"abwesen",
    r"fuori (sede|ufficio)",
    r"r[ée]ponse automatique",
    r"respuesta autom|autorrespuesta",
    r"fuera de (la )?oficina",
    r"resposta autom",
    r"fora do escrit",
    r"risposta automatica|autorisposta",
    r"afwezig|automatisch (antwoord|bericht)",
    r"frånvaro|autosvar|automatiskt? svar",
    r"fravær",
    r"automaattinen|poissa",
    r"不在|自動(返信|応答|回复)|自动(回复|答复)|休假|자동 ?(응답|회신)|부재",
    r"автоответ|автоматическ\w+ ответ|отсутств",
    r"poza biurem|autoodpowied|automatyczna odpowied",
    r"mimo kancel|automatick[áa] odpov",
    r"automatikus v[áa]lasz|h[áa]zon k[íi]v[üu]l",
    r"otomatik (yan[ıi]t|cevap)|ofis d[ıi][şs][ıi]",
    r"răspuns automat|αυτόματη απάντηση|תשובה אוטומטית",
    r"thank you for (your (e-?mail|message|mail|enquiry|inquiry)|contacting)",
    r"(have|has) (left|moved)( \w+)? (the )?company",
    r"no longer (with|works?|employed)",
    r"(new|change of|changed) (my )?e-?mail ?(address)?",
    r"address (has )?changed",
    r"^(action requise|sender (confirmation|verification))",
)
ABSENT_TEXT: Final = _any(
    r"\b(am|is|be|are|currently|being)( \w+){0,2} (out of|away from)( the| my)? office",
    r"\b(am|be|currently)( \w+){0,2} on (a )?(vacation|holiday|(annual|sick|maternity|parental) leave)",
    r"(will|shall) (be back|return)( \w+){0,3} (on|from)",
    r"bin (derzeit|zur zeit|bis|vom)",
    r"je suis (actuellement )?absent",
    r"no longer (works? (for|at|here)|with (the|our) company|employed)",
    r"(arbeitet|bin) nicht mehr (bei|für|im)|ne (travaille|fait) plus (chez|partie)",
    r"(is|are|for) (this |an? )?(automatic|automated)( \w+)? (reply|response|answer)",
)
CHALLENGE: Final = _any(
    r"(confirm|verif)\w*( \w+){0,5} (you are|yourself|human|your (message|identity|e-?mail|delivery|mail))",
    r"challenge[-/ ]response",
    r"\btmda\b",
    r"spamarrest",
    r"boxtrapper",
    r"(click|reply|respond)( \w+){0,8} (confirm|verify|deliver|release)( \w+){0,6} (message|mail|e-?mail|delivery)",
    r"anti[- ]?spam uol",
    r"your (message|mail|e-?mail) (is|has been) (being )?held",
    r"(please|must) (confirm|authenticate|verify)( \w+){0,3} (your|that)",
    r"sender (confirmation|verification)( \w+)? (required|request)",
    r"confirma[cç][aã]o de (envio|e-?mail)",
    r"mailinblack",
    r"(cliquez|cliquer)( \w+){0,6} (authentifier|valider)",
    r"real live human",
)

# --- complaints that are no RFC 5965 ------------------------------------------------------------------

COMPLAINT_SUBJECT: Final = _any(
    r"complaint about message from",
    r"abuse report",
    r"spam (complaint|report|notification)",
    r"feedback[- ]?loop",
    r"\bfbl\b",
    r"client tos notification",
    r"email feedback report",
    r"junk ?mail report",
    r"\[?spam\]? feedback",
)

# --- where the returned message begins in a text ------------------------------------------------------

_MAIL: Final = r"(?:e-?mail|message|mail|note|text|content)s?"
_BELOW: Final = (
    r"(?:(?:(?:is|are|as)\s)?(?:following|follows?|attached|included|appended|enclosed|(?:is |are )?below)\b.{0,30}$"
    r"|[ \t:.=*+|>-]{0,80}$)"
)
RETURNED: Final = re2.compile(
    r"(?im)^[ \t>|*#=_+-]{0,80}(?:"
    r"this is (?:a|the) copy of\b|below (?:this|the next|the) line\b|enclosed is a copy\b"
    r"|start of (?:returned|forwarded)\b"
    r"|(?:\w+ ){0,3}(?:unsent|original|returned|undelivered|rejected|bounced|truncated|old)"
    rf" (?:{_MAIL} ?){{1,2}}(?:(?:headers?|body|part|data)\b ?)?{_BELOW}"
    r"|(?:\w+ ){0,4}(?:copy|headers?|body|text|first \d+ (?:lines|bytes)) of (?:the |your )?(?:\w+ )?"
    rf"{_MAIL} ?{_BELOW}"
    rf"|(?:\w+ ){{0,4}}(?:message|mail|rfc ?822) (?:headers?|body|source)[ :]{{0,3}}{_BELOW}"
    r"|.{0,60}(?:headers?|message|mail|text)s? (?:(?:is |are |as )?(?:follows|appended)|(?:is|are) below)\b.{0,20}$"
    r")"
    r"|^[ >]*(?:"
    r"-{2,} ?(?:original|ursprüngliche|mensaje original|message d.origine|messaggio originale"
    r"|begin|start|forwarded|returned)\b.{0,80}"
    r"|return-path: ?<|received: ?(?:from|by|\()|message-id: ?<|x-mailer: |mime-version: 1"
    r"|dkim-signature: ?[a-z]=|authentication-results: ?[^\s;]+;"
    r"|content-type: (?:message/rfc822|text/rfc822-headers)"
    r")"
)
# What it announces are particulars of the message; the report goes on below them.
PARTICULARS: Final = re2.compile(r"(?i)\b(?:you sent|your (?:message|mail|e-?mail))\b.{0,60}:\s*$")
