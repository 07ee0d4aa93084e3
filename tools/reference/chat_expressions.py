"""Templates of one construct each, for `make_chat_fixtures.py`. `MESSAGES` and `VARIABLES` are what they see."""

MESSAGES = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": "Hi <b>\"é\"</b>", "name": "Ann"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "f", "arguments": {"b": 1, "a": [True, None, 1.5, "x'y"]}}}],
    },
]
VARIABLES = {
    "n": 3, "f": 0.1, "big": 1e20, "small": 1e-7, "whole": 2.0, "huge": 12345678901234567890, "yes": True, "e": "",
    "text": "a,b,,c", "list": [3, 1, 2], "map": {"b": 1, "a": {"items": [1], "keys": 2}},
}

# One expression a line, each to be printed.
PRINTED = r"""
messages|length
messages|count
messages[1:]|length
messages[::-1]|map(attribute='role')|join(',')
messages[-1].role
messages[:-1]|map(attribute='role')|list
messages[-2:][0].role
messages|selectattr('role','equalto','user')|list|length
messages|selectattr('role','==','user')|map(attribute='name')|first
messages|selectattr('role','in',['user','system'])|map(attribute='role')|join(' ')
messages|rejectattr('role','equalto','system')|map(attribute='role')|list
messages|selectattr('tool_calls','defined')|list|length
messages|selectattr('tool_calls')|list|length
messages|map(attribute='name',default='-')|list
messages|map(attribute='role')|map('upper')|list
messages|groupby('role')|map(attribute=0)|list
messages[0].content.strip()|length
messages[0].content|trim
messages[0].content.lstrip() + '|'
messages[0].content.rstrip() + '|'
messages[2].content
messages[2].content|trim
messages[2].content|string
messages[2].content|upper
messages[2].content|lower
messages[2].content|title
messages[2].content|capitalize
messages[2].content|length
messages[2].content|default('x')
messages[2].content|default('x', true)
messages[2].content is none
messages[2].content is string
messages[2].content is iterable
messages[2].content is sequence
messages[2].content is mapping
messages[2].content ~ 'x'
messages[2].content == none
messages[2].content or 'y'
messages[2].content|replace('N','x')
messages[2].content|first
messages[2].content|tojson
messages[2].nope
messages[2].nope.nope
messages[2].nope|length
messages[2].nope|trim
messages[2].nope|list
messages[2].nope|join(',')
messages[2].nope|upper
messages[2].nope|string
messages[2].nope|default('d')
messages[2].nope|tojson
messages[2].nope|first
messages[2].nope is defined
messages[2].nope is none
messages[2].nope is string
messages[2].nope is iterable
messages[2].nope is sequence
messages[2].nope is mapping
messages[2].nope == none
messages[2].nope == ''
messages[2].nope ~ 'x'
messages[2].nope + 'x'
'x' + messages[2].nope
'x' in messages[2].nope
messages[2].nope not in ['a']
not messages[2].nope
messages[2].nope|selectattr('x')|list
messages[2]['nope'] is defined
messages[2].tool_calls[0].function.arguments
messages[2].tool_calls[0].function.arguments|tojson
messages[2].tool_calls[0].function.arguments|tojson(indent=4)
messages[2].tool_calls[0].function.arguments|tojson(indent=2, sort_keys=true)
messages[2].tool_calls[0].function.arguments|tojson(sort_keys=true)
messages[2].tool_calls[0].function.arguments|tojson(separators=(',', ':'))
messages[2].tool_calls[0].function.arguments|tojson(separators=[',', ':'])
messages[2].tool_calls[0].function.arguments|tojson(indent=1, separators=(',', ' : '))
messages[2].tool_calls[0].function.arguments|tojson(indent=none)
messages[2].tool_calls[0].function.arguments|tojson(indent=0)
messages[2].tool_calls[0].function.arguments|tojson(true)
messages[2].tool_calls[0].function.arguments|tojson(false, 2)
messages[2].tool_calls[0].function.arguments|tojson(indent='  ')
messages[1].content|tojson
messages[1].content|tojson(ensure_ascii=true)
messages[1].content|e
messages[1].content|escape
messages[1].content|safe
messages[1].content|safe ~ '<'
messages|tojson
messages
messages[1]
messages[1].items()|list
messages[1]|items|list
messages[1].keys()|list
messages[1].values()|list
messages[1]|list
messages[1].get('name')
messages[1].get('nope')
messages[1].get('nope', 'd')
messages[1].get('content')[0]
'name' in messages[1]
'nope' not in messages[1]
messages[1]|length
messages[1]|dictsort
messages[1] is mapping
messages[1] is iterable
messages[1] is sequence
messages is iterable
messages is sequence
messages is mapping
'abc' is iterable
'abc' is sequence
'abc' is string
3 is number
3 is integer
3.0 is integer
3.0 is float
true is number
true is integer
true is boolean
1 is boolean
true is true
1 is true
0 is false
3 is odd
3 is even
9 is divisibleby 3
9 is divisibleby(3)
3 is eq 3
3 is equalto(3)
3 is in [3]
3 is in([3])
3 is not in [4]
'abc' is lower
raise_exception is defined
strftime_now is defined
namespace is defined
bos_token is defined
eos_token is defined
nope is defined and nope
nope is not defined or nope
not nope is defined
n + 1
n * 2
n / 2
n // 2
n % 2
n ** 2
-n
-n // 2
-n % 2
7 / 7
n|string + 'x'
n ~ 'x'
'x' * n
'x' + n
[1] + [2]
[1] * 2
{'a': 1}
{'a': 1, 'b': 'x'}
{'b': 1, 'a': 2}|tojson
(1, 2)
(1,)
[1, 'a', none, true, 1.0]
[1, 'it''s']
["it's"]
['say "hi"']
["it's \"x\""]
['a\nb\t\\']
['é日🙂']
f
big
small
whole
huge
1e16
1e15
123456789.123
1e-4
1e-5
-0.0
f ~ ''
[big, small, whole, f, huge]|tojson
big|string
0.1 + 0.2
n|float
f|int
'12'|int
'x'|int
'x'|int(5)
'1.5'|float
2.5|round
3.5|round
2.567|round(2)
2.567|round(1, 'floor')
n|abs
text.split(',')
text.split(',', 1)
text.split(',')[-1]
text.split(',')|first
text.split(',')|last
text.split(',')|reject('equalto','')|list
text.split(',')|select|list
text.rsplit(',', 1)
text.rsplit(',')
text.partition(',')
text.rpartition(',')
' a  b '.split()
' a  b '.split(' ')
'a</think>b</think>c'.split('</think>')[-1].lstrip('\n')
'a</think>b</think>c'.split('</think>')[0].rstrip('\n').split('<think>')[-1]
text.replace(',', ';')
text.replace(',', ';', 1)
text|replace(',', ';')
text|replace(',', ';', 1)
text.count(',')
text.find('b')
text.find('z')
text.index('b')
text.rfind(',')
text.startswith('a')
text.startswith(('x', 'a'))
text.endswith('c')
text.endswith(('x', 'c'))
text.upper()
text.lower()
text.title()
text.capitalize()
'hello wORLD it''s'.title()
"hello wORLD it's o'neil x2y"|title
"hello wORLD it's o'neil x2y".title()
'hello wORLD'|capitalize
'hello'.removeprefix('he')
'hello'.removesuffix('lo')
'hello'.isalpha()
'12'.isdigit()
' '.isspace()
'a\nb'.splitlines()
'a\nb\n'.splitlines(true)
'a\r\nb'.splitlines()
','.join(['a','b'])
', '.join(messages|map(attribute='role'))
'xxaxx'.strip('x')
'\n\na\n'.strip('\n')
'\u00a0a\u3000'.strip() ~ '|'
'\u200ba'.strip()|length
'{} and {}'.format('a', 3)
'{0} {1} {0}'.format('a', 'b')
'{a}'.format(a=1)
'{:.2f}'.format(1.5)
'%s-%s'|format('a', 'b')
'abc'[0]
'abc'[-1]
'abc'[1:]
'abc'[::-1]
'abc'[5:]
'abc'[5]
[1,2,3][5]
[1,2,3][1:2]
'a' 'b'
'é日🙂'|length
'é日🙂'[1]
'\u2581' ~ '\x41'
'a\'b'
"tab\there"
'\d'
'a' < 'b'
1 < 2 < 3
1 == 1.0
1 == true
'1' == 1
[1] == [1]
{'a': 1} == {'a': 1}
'a' if yes else 'b'
'a' if false
('a' if false)|length
none
true
false
None
True
yes and 'x'
e or 'x'
e and 'x'
0 or none or 'z'
not e
list|sort
list|sort(reverse=true)
list|reverse|list
list|max
list|min
list|sum
list|unique|list
list|batch(2)|list
list|slice(2)|list
list|join(', ')
list|join(', ', attribute='x')
list|first
list|last
list|tojson
list|string
list|length
list|list
'abc'|list
'abc'|reverse
'abc'|first
'abc'|last
'abc'|sort
map.a
map['a']['items']
map.a['items']
map.a.items()|list
map.a.keys()|list
map.a.get('keys')
map|items|list
map|dictsort|list
map.copy()
map.pop('a')
map.update({'c': 1})
list.append(4)
list.count(1)
list.copy()
dict(a=1, b=2)
dict(map, c=3)
dict(a=1)|tojson
namespace(a=1).a
namespace(a=1).b
namespace(map).b
range(3)|list
range(1, 4)|list
range(5, 0, -2)|list
'hello\nworld'|indent
'hello\nworld'|indent(2)
'hello\nworld'|indent(2, true)
'hello\nworld'|indent(width=2, first=true)
'hello\n\nworld'|indent(2)
'hello\n\nworld'|indent(2, blank=true)
'xxaxx'|trim('x')
[{'a': 1}, {'a': 2}]|sum(attribute='a')
[{'a': 2}, {'a': 1}]|sort(attribute='a')
[{'a': 2}, {'a': 1}]|map(attribute='a')|max
[{'a': {'b': 2}}]|map(attribute='a.b')|list
['a', 'B']|sort
['b', 'B', 'a']|unique|list
[1, 2, 3, 4]|select('odd')|list
[1, 2, 3, 4]|reject('odd')|list
[1, 2]|map('string')|list
['a ', ' b']|map('trim')|join('')
[0, 1, '', 'a']|select|list
[[1, 2], [3]]|sum(start=[])
[1, 2, 3]|select('greaterthan', 1)|list
[1, 2, 3]|select('gt', 1)|list
[1, 2, 3]|select('>', 1)|list
['ab', 'cd']|map('replace', 'a', 'x')|list
['ab', 'cd']|map('first')|list
messages|map(attribute='content')|select('string')|list|length
messages|map(attribute='role')|unique|list
messages|first
messages|last is mapping
messages|string|length > 0
'a' in 'abc'
'a' not in 'abc'
1 in [1, 2]
none in [none]
'upper' is filter
'defined' is test
3 is sameas 3
none is none
none is defined
none|string
none|int
none ~ true
true|string
true ~ ''
true|tojson
true|int
true + 1
[true, false, none]
[true]|join
[none, 1]|join(',')
none|length
none == false
1.0|tojson
100|tojson
'a/b</script>\u2028\x7f\x00'|tojson
{1: 'a'}|tojson
{none: 'a'}|tojson
{true: 'a'}|tojson
{1.5: 'a'}|tojson
{}|tojson(indent=2)
[]|tojson(indent=2)
[[], {}]|tojson(indent=2)
(1, 2)|tojson
nope|tojson
range(2)|list|tojson
'a'|tojson|tojson
'a'|tojson|length
'a' ~ 'b'|upper
('a' ~ 'b')|upper
'a' + 'b'|upper
-1|abs
not true == false
1 if true else 2 if true else 3
[1,2,3]|first + 1
messages[0]['content'][1:3]
messages[n]
messages[n].role
'\n'
'a' == "a"
raise_exception('no')
raise_exception()
raise_exception(3)
strftime_now('%Y') == strftime_now('%Y')
'%}'
loop is defined
caller is defined
varargs is defined
x.y.z
text.nope
text.nope()
text['nope']
n.nope
list.nope
list['nope']
messages|tojson|length
'abc'|batch(2)|list
'a-b'|replace('-', '')|upper
messages|selectattr("role", "equalto", "tool")|list == []
(messages|selectattr('role', 'equalto', 'user')|list)[0].content
(messages|last)['role']
messages[0].role in ('system', 'developer')
messages[0].role == 'system' and messages[0].content is string
messages[0].get('content', '')|trim
'a' | default('b') ~ 'c'
'' | default('b') ~ 'c'
'' | default('b', true) ~ 'c'
'' | default('b', boolean=true) ~ 'c'
nope | default('b') ~ 'c'
nope | d([])|length
none | default({}, true)
map.get('zz', {}).get('y')
map.get('zz') or {}
list[0] + list[-1]
list[1:] + list[:1]
'abc'|select|list
'a,b'.split(',')|map('trim')|list
'1'|int + 1
f|round(2)
1/3
10/5
2**-1
7//2.0
7.5 % 2
1_000
0x1f
1.5e3
''.join([])
[]|join
[]|first
[]|last
[]|max
[]|sum
{}|length
()|length
{}.items()|list
[(1,2),(3,4)]|map(attribute=1)|list
[(1,2),(3,4)]|map('last')|list
[(1,'b'),(3,'a')]|sort(attribute='1')
messages|map('items')|list|length
"a" "b" 'c'
'\101'
'a\
b'
dict(**map)
'x' if messages[0].content is defined and messages[0].content is not none else 'y'
messages[0].role | upper ~ ':'
[messages[0].role, 'x']|join('/')
messages[1]['content'] | replace('<b>', '') | trim
'''x'''
nope()
messages[0].role()
messages | map(attribute='content') | list | tojson
map.values()|list|tojson
map.keys()|list|tojson
map.items()|list|tojson
messages|map(attribute='role') is iterable
'x'|float
'x'|float(2.0)
'a,b,c'.split(',', maxsplit=1)
'{a}-{b:>4}'.format(a=1, b='x')
'{:5d}'.format(3)
'%.2f'|format(1.5)
'日本語 ñandú'.title()
'ab'.rsplit('x')
''.split(',')
''.split()
'x'.rsplit('x')
'a b c'.rsplit()
'abc'.partition('z')
'abc'.rpartition('z')
'abc'.partition('abc')
'abc'.rindex('c')
'abc'.index('z')
{'a': 1}.copy()
[1].copy()
'<>&"\''|e
1.0|e
messages|tojson(ensure_ascii=true, indent=1)
{1.5: 1e20, 'b': 1e-7}|tojson
{'b': {'d': 1, 'c': 2}, 'a': 1}|tojson(sort_keys=true)
0|string
1e300|string
1e22
1e21|string
123456789012345680.0
nope|default
nope|default(default_value='z')
none|default('a', boolean=yes)
range(3) is iterable
map.items() is iterable
map.items() is sequence
3 is iterable
nope is iterable
true is iterable
'12'|int(base=16)
'zz'|int(default=7)
'zz'|int(-1)
none|int(4)
1.9|int
'3.7'|int
"""

TEMPLATES = [
    "{{ '{{' }}",
    "{% for k, v in map.items() %}{{ k }}={{ v }};{% endfor %}",
    "{% for k, v in map|items %}{{ k }};{% endfor %}",
    "{% for k in map %}{{ k }};{% endfor %}",
    "{% for k, v in map.items()|list %}{{ loop.index }}{{ k }};{% endfor %}",
    "{% for m in messages %}{{ loop.first }}{{ loop.last }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.length }}{{ loop.previtem is defined }}{{ loop.nextitem.role }}{% endfor %}",
    "{% for m in messages if m.role != 'user' %}{{ loop.index }}{{ m.role }}{% else %}none{% endfor %}",
    "{% for m in [] %}x{% else %}none{% endfor %}",
    "{% for m in nope %}x{% else %}none{% endfor %}",
    "{% for m in messages %}{{ loop.changed(m.role) }}{{ loop.cycle('a', 'b') }}{{ loop.depth }}{{ loop.depth0 }}{% endfor %}",
    "{% for c in 'añ🙂' %}[{{ c }}]{% endfor %}",
    "{% for a in [1,2] %}{% for b in [3,4] %}{{ loop.index }}{{ a }}{{ b }}{% endfor %}{{ loop.index }}{% endfor %}",
    "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% endfor %}",
    "{% for m in messages recursive %}{{ m.role }}{% endfor %}",
    "{% for i in [[1,[2]],[3]] recursive %}{% if i is iterable %}{{ loop(i) }}{% else %}{{ i }}{% endif %}{% endfor %}",
    "{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}",
    "{% set x = 1 %}{% for i in [1] %}{% set x = 2 %}{{ x }}{% endfor %}{{ x }}",
    "{% set ns = namespace(x=1, found=false, l=[]) %}{% for i in [1,2] %}{% set ns.x = ns.x + i %}{% set ns.l = ns.l + [i] %}{% set ns.found = true %}{% endfor %}{{ ns.x }}{{ ns.l }}{{ ns.found }}",
    "{% set ns = namespace() %}{% set ns.a = 1 %}{{ ns.a }}{{ ns.b is defined }}",
    "{% set ns = namespace(x={'a': 1}) %}{{ ns.x.a }}{{ ns['x'] }}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}",
    "{% set (a, b) = [1, 2] %}{{ a }}{{ b }}",
    "{% set x %}a{{ n }}b{% endset %}{{ x|upper }}|{{ x|length }}|{{ x is string }}",
    "{% set x %}<b>{% endset %}{{ x ~ '<' }}{{ x + '<' }}{{ x|tojson }}",
    "{% set x | upper %}abc{% endset %}{{ x }}",
    "{% set messages = messages[1:] %}{{ messages|length }}",
    "{% macro f(a, b='x', c=none) %}[{{ a }}{{ b }}{{ c }}]{% endmacro %}{{ f(1) }}{{ f(1, 2) }}{{ f(a=1, c=3) }}{{ f() }}",
    "{% macro f(a) -%}\n  {{ a }}\n{%- endmacro %}{{ f('x') ~ '<' }}{{ f('<')|length }}{{ f('y') + 'z' }}{{ f('q')|trim|upper }}",
    "{% macro f(a) %}{% if a > 0 %}{{ a }}{{ f(a - 1) }}{% endif %}{% endmacro %}{{ f(3) }}",
    "{% macro f() %}{{ n }}{{ messages|length }}{% endmacro %}{{ f() }}",
    "{% macro f(x) %}{{ caller() }}{{ x }}{% endmacro %}{% call f(1) %}body{% endcall %}",
    "{% macro f() %}{{ caller('u') }}{% endmacro %}{% call(v) f() %}body {{ v }}{% endcall %}",
    "{% macro f(t) %}{% for k, v in t.items() %}{{ k }}:{{ g(v) }},{% endfor %}{% endmacro %}{% macro g(v) %}{{ v }}{% endmacro %}{{ f(map) }}",
    "{% filter upper %}abc{% endfilter %}",
    "{% filter trim|upper %} abc {% endfilter %}",
    "{% with a = 1 %}{{ a }}{% endwith %}{{ a }}",
    "{% raw %}{{ x }}{% endraw %}",
    "{# c #}a",
    "a\n  {# c #}\nb",
    "a {#- c -#} b",
    "a\n{#- c #}\nb",
    "a\n  {% if true %}  \n b\n  {% endif %}\nc\n",
    "a\n\n",
    "a\n",
    "a\n\n\n",
    "\n{{ n }}\n",
    "a  {%- if true -%}  b  {%- endif -%}  c",
    "a  {%+ if true %} b{% endif +%}\n c",
    "   {%+ if true %}x{% endif %}",
    "{{- 'a' -}}   b   {{- 'c' }}\n{{ 'd' }}\n",
    "  {{ 'a' }}\n  {{ 'b' -}}\n",
    "{% if true -%}\n\n  x\n\n{%- endif %}",
    "{% if n > 5 %}a{% elif n == 3 %}b{% else %}c{% endif %}",
    "{% if messages[0]['role'] == 'system' and messages|length > 1 %}y{% endif %}",
    "{% if not messages[0].nope %}y{% endif %}",
    "{% if messages[2].content %}y{% else %}n{% endif %}",
    "{%- generation -%} x {%- endgeneration -%}|",
    "{% generation %}\na\n{% endgeneration %}\nb",
    "{% do list.append(1) %}",
    "{% include 'x' %}",
    "{% block a %}x{% endblock %}",
    "{% autoescape true %}{{ '<' }}{% endautoescape %}",
    "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 1) %}{{ raise_exception('alternate!') }}{% endif %}{% endfor %}ok",
    "{% if (messages[0].role == 'system') == (1 % 2 == 1) %}y{% endif %}",
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = message['content'] %}{{ content }}{% endfor %}",
    "{% for m in messages[::-1] %}{% set index = (messages|length - 1) - loop.index0 %}{{ index }}{{ m.role }}{% endfor %}",
    "{% set i = {'a': 1} %}{% set i = dict(i, **{'b': 2}) %}{{ i }}",
    "{% for t in [1,2,3] -%}\n  {{- t }}{% if not loop.last %}, {% endif %}\n{%- endfor %}",
    "{%- set roles = ['user', 'assistant'] -%}{% for m in messages if m.role in roles %}{{ m.role }}{{ loop.nextitem is defined }}{{ loop.previtem.role if loop.previtem else '' }}{% endfor %}",
    "{% for key in map.keys()|sort %}{{ key }}{% endfor %}",
    "{% for key, value in map|dictsort %}{{ key }}{% endfor %}",
    "{% for a, b in [(1, 2), (3, 4)] %}{{ a }}-{{ b }};{% endfor %}",
    "{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}",
    "{{ '<|' + messages[0]['role'] + '|>\n' }}x",
    "{{'a\n'}}\n{{'b'}}",
    "{% if true %}{{ 'a\n' }}{% endif %}\nb",
    "é{{ '日' }}🙂",
    "a\r\nb\r\n{{ 'c\r\n' }}d",
    "{{ 1 }}\r\n{% if true %}\r\nx\r\n{% endif %}\r\n",
    "{% set x = 'a' -%}\n\n{{ x }}",
    "{% if true %}\n\n\nx{% endif %}",
    "{% if false %}{{ nope() }}{% endif %}ok",
    "{% if false %}{{ x|nope }}{% endif %}ok",
    "{% if false %}{{ x is nope }}{% endif %}ok",
    "{%- if tools is defined and tools is not none and tools|length > 0 %}y{% else %}n{% endif %}",
    "{% if tools %}y{% else %}n{% endif %}",
    "{% if tools is iterable and tools|length > 0 %}y{% else %}n{% endif %}",
    "{% if enable_thinking is defined and enable_thinking is false %}a{% else %}b{% endif %}",
    "{% set enable_thinking = enable_thinking if enable_thinking is defined else true %}{{ enable_thinking }}",
    "{{ map | tojson }}{{ map.a | tojson(indent=2) | indent(4) }}",
    "{% set x = messages | tojson %}{{ x[:20] }}",
    "{{ '{0:.3f}|{1:>5}|{1:<3}|{{}}'.format(1.5, 'ab') }}",
]


def expressions() -> list[str]:
    """All of them, as templates."""
    return ["{{ " + line + " }}" for line in PRINTED.strip("\n").split("\n")] + TEMPLATES
