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
    r"\bpost-?master\b",
    r"mail[-_ ]?(delivery|system|administrator|server|router|daemon)",
    r"<>",
    r"\bbounces?\b",
    r"delivery[-_ ]?(system|service|subsystem|status|failure)",
    r"no-?reply@sns\.amazonaws",
    r"\bmmdf\b",
    r"mail-?gateway",
    r"majordomo",
    r"mrelay",
    r"internet[-_ ]mail",
    r"\bdaemon\b",
    r"microsoft ?exchange",
    r"smtp[-_ ]?(server|daemon)",
    r"mdaemon",
    r"system attendant",
)
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
    r"недостав",
    r"не доставлен",
    r"deliver\w*.{0,30}warn",
    r"メール.{0,10}エラー",
    r"postponed",
    r"rejected",
    r"warning: (could not|message)",
    r"user unknown",
    r"no such (user|address)",
    r"mail could not",
    r"^nondeliverable",
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

# --- automatic answers ------------------------------------------------------------------------------

ABSENT_SUBJECT: Final = _any(
    r"out[- ]of[- ](the )?office",
    r"\bOOO\b",
    r"auto(matic|mated)?[-_ ]?(re(ply|sponse|spond)|answer|antwort)",
    r"^auto:",
    r"\bautoreply",
    r"away from",
    r"(on|in|am) (annual |sick |parental |maternity )?(vacation|holiday|leave)\b",
    r"vacation",
    r"absen(ce|t|za|cia)",
    r"abwesen",
    r"fuori (sede|ufficio)",
    r"r[ée]ponse automatique",
    r"absence du bureau",
    r"respuesta autom",
    r"fuera de (la )?oficina",
    r"resposta autom",
    r"fora do escrit",
    r"risposta automatica",
    r"afwezig",
    r"frånvaro",
    r"fravær",
    r"不在",
    r"自動(返信|応答|回复)",
    r"自动(回复|答复)",
    r"休假",
    r"автоответ|отсутств",
    r"poza biurem",
    r"mimo kancel",
    r"thank you for (your (e-?mail|message|mail|enquiry|inquiry)|contacting)",
    r"(have|has) (left|moved)( \w+)? (the )?company",
    r"no longer (with|works?|employed)",
    r"(new|change of|changed) (my )?e-?mail ?(address)?",
    r"address (has )?changed",
)
ABSENT_TEXT: Final = _any(
    r"\b(am|is|be|are|currently|being)( \w+){0,2} (out of|away from)( the| my)? office",
    r"\b(am|be|currently)( \w+){0,2} on (a )?(vacation|holiday|(annual|sick|maternity|parental) leave)",
    r"(will|shall) (be back|return)( \w+){0,3} (on|from)",
    r"bin (derzeit|zur zeit|bis|vom)",
    r"je suis (actuellement )?absent",
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

RETURNED: Final = re2.compile(
    r"(?im)^[ >]*(?:"
    r"[-=_*+ ]{0,80}\s*(?:this is (?:a|the) copy of|below (?:this line|is|are)"
    r"|(?:unsent|original|returned|your|copy of(?: the)?|undelivered|rejected|bounced)(?: the)? ?(?:e-?mail |mail )?"
    r"(?:message|mail|header|content|text|e-?mail)s?\b.{0,60}(?:follow|below|:|-{2,}|is attached|=)"
    r"|message header|headers? of|start of (?:returned|forwarded)|the (?:header|body|text|first \d+ lines) of"
    r"|original message)"
    r"|.{0,60}(?:message|header|mail|text)s? (?:is |are )?(?:follows|appended|below)\b.{0,20}$"
    r"|---+ ?(?:original|ursprüngliche|mensaje original|message d.origine|messaggio originale).{0,60}"
    r"|-{2,} ?(?:begin|start|forwarded|returned).{0,80}"
    r"|return-path: ?<|received: (?:from|by|\()|message-id: ?<|x-mailer: |mime-version: 1"
    r"|content-type: (?:message/rfc822|text/rfc822-headers)"
    r")"
)
