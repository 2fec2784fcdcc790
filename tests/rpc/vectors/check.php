<?php
// The golden vectors in PHP: `php tests/rpc/vectors/check.php` prints what is wrong.

declare(strict_types=1);

use Pgbackend\Rpc\Client;
use Pgbackend\Rpc\Expr;
use Pgbackend\Rpc\Q;
use Pgbackend\Rpc\RemoteError;
use Pgbackend\Rpc\Request;
use Pgbackend\Rpc\Tagged;
use Pgbackend\Rpc\Wire;

error_reporting(E_ALL);
set_error_handler(function (int $level, string $message): never {
    throw new ErrorException($message, 0, $level);
});
require $argv[1] ?? __DIR__ . '/../../../pgbackend/rpc/php/pgbackend_rpc.php';

$passed = 0;
$failed = 0;

function check(string $what, bool $right): void
{
    global $passed, $failed;
    if ($right) {
        $passed++;
    } else {
        $failed++;
        echo "FAILED $what\n";
    }
}

function vectors(string $name): mixed
{
    return json_decode(file_get_contents(__DIR__ . "/$name.json"), true, flags: JSON_THROW_ON_ERROR);
}

function code_of(callable $call): ?string
{
    try {
        $call();
    } catch (RemoteError $error) {
        return $error->errorCode;
    }
    return null;
}

/** Return $text as this PHP writes its floats: 5e-324 has other digits here, and is the same. */
function written_here(string $text): string
{
    $value = json_decode($text);
    return is_float($value) ? Wire::text($value) : $text;
}

foreach (['values', 'json_documents', 'trees'] as $file) {
    foreach (vectors($file) as $vector) {
        $read = Wire::parsed($vector['wire']);
        if ($file === 'trees') {
            $again = Wire::text($read);
        } else {
            $again = Wire::text(Wire::encode(Wire::decode($read)));
            Wire::plain(Wire::decode($read));
        }
        check("$file: {$vector['name']}", $again === written_here($vector['wire']));
    }
}

// What PHP has itself is written as the vectors say.
$made = [
    'the largest integer that is a number' => 9007199254740992,
    'an integer beyond' => 9007199254740993,
    'the largest bigint' => PHP_INT_MAX,
    'a float without a fraction' => 1.0,
    'nan' => NAN,
    'minus infinity' => -INF,
    'text outside ASCII, as itself' => "Ёлка ☃ \u{1f600}",
    'control characters' => "\x00\x01\x08\t\n\f\r\x1f",
    'line separators, as themselves' => "\u{2028}\u{2029}",
    'quotes, backslash, slash' => '"\\/',
    'a naive datetime, no part of a second' => Tagged::naive('2017-01-01T00:00:00.000000'),
    'a datetime in UTC' => new DateTimeImmutable('2017-01-01T12:30:00.000001+00:00'),
    'a datetime east of UTC' => new DateTimeImmutable('2017-01-01T12:30:00.12+05:45'),
    'a date' => Tagged::date('2017-01-01'),
    'midnight' => Tagged::time('00:00:00.000000'),
    'a microsecond ago' => Tagged::microseconds(-1),
    'a decimal' => Tagged::decimal('12.50'),
    'a uuid' => Tagged::uuid('12345678-9ABC-def0-1234-56789abcdef0'),
    'bytes' => Tagged::bytes("\x00\xff"),
    'a list in a list' => [1, ['a', null]],
    'a tuple' => Tagged::tuple([1, Tagged::tuple([2])]),
    'an empty dict' => Tagged::dict([]),
    'a dict' => ['$dt' => 1, 2 => Tagged::date('2017-01-01')],
    'arithmetic' => Expr::op('*', Expr::op('+', Expr::f('price'), 1), Expr::f('count')),
    'a function' => Expr::fn('Coalesce', 'name', Expr::value('-')),
    'an aggregate' => Expr::agg('Count', '*'),
    'an aggregate with all options' =>
        Expr::agg('Sum', 'price', true, Q::of(price__gt: 1), 0),
    'an order' => Expr::order('price', 'desc', 'last'),
];
$values = array_column(vectors('values'), 'wire', 'name');
foreach ($made as $name => $value) {
    check("made: $name", Wire::text(Wire::encode($value)) === $values[$name]);
}

$client = new Client('http://127.0.0.1:1/', 'k1', '0123456789abcdef0123456789abcdef');
$dishes = $client->model('kitchen.Dish');
$made = [
    'all rows' => $dishes->request('rows'),
    'a filter' => $dishes->filter(pk__in: [1, 2])->request('count'),
    'a slice' => $dishes->order_by('-price', Expr::order('name'))->slice(null, 10)->request('rows'),
    'an annotation' => $dishes->annotate(n: Expr::agg('Count', 'order'))->request('rows'),
    'a union' => $dishes->union($dishes, all: true)->request('rows'),
    'a new row' => $dishes->request('create', name: 'Soup', price: Tagged::decimal('4.20')),
    'a method' => $client->model('kitchen.Order')
        ->request('call', 'advance', 1, by: Tagged::microseconds(60000000)),
];
$trees = array_column(vectors('trees'), 'wire', 'name');
foreach ($made as $name => $request) {
    check("made: $name", Wire::text($request->tree) === $trees[$name]);
}
check('a condition', Wire::text(Q::of(a: 1)->or(Q::of(b: 2)->not())->json()) ===
    '{"$q":["or",[{"$q":["and",[["a",1]],false]},{"$q":["and",[["b",2]],true]}],false]}');

// Sealing, with a fixed id, nonce and time.
['secrets' => $secrets, 'id' => $id, 'vectors' => $messages] = vectors('messages');
foreach ($messages as $vector) {
    [, $key, , $body] = explode('.', $vector['wire'], 4);
    check("messages: {$vector['name']}", Wire::seal($body, $key, $secrets[$key]) === $vector['wire']);
}
$body = $client->body($id, str_repeat('ab', 16), 1767225600.25, [$dishes->request('delete')],
    false, null);
$parts = json_decode($body, true);
check('a body: its time', [$parts['time'], $parts['deadline']] === [1767225600250, 1767225610250]);
check('a body: a write has an idempotency key', strlen($parts['idempotency']) === 32);
check('a key that is too short', code_of(function () use ($client): void {
    try {
        new Client('http://127.0.0.1/', 'k1', 'short');
    } catch (InvalidArgumentException) {
        throw new RemoteError('BadValue');
    }
}) === 'BadValue');

['secrets' => $secrets, 'id' => $id, 'vectors' => $answers] = vectors('answers');
foreach ($answers as $vector) {
    $found = null;
    try {
        $results = Wire::open($vector['wire'], $secrets, $id);
        $codes = array_map(fn ($each) => $each instanceof RemoteError ? $each->errorCode : null, $results);
        check("answers: {$vector['name']}", $codes === ($vector['codes'] ?? false));
    } catch (RemoteError $error) {
        check("answers: {$vector['name']}", [$error->errorCode, $error->sealed]
            === [$vector['error'] ?? null, $vector['sealed'] ?? null]);
    }
}
$details = array_column($answers, 'wire', 'name');
$wrong = Wire::open($details['what is wrong by field, with codes and params'], $secrets, $id)[0];
check('what is wrong by field', $wrong->details['errors'] === [
    'name' => [['At most %(most)d, not %(n)d.', 'max_length', ['most' => 3, 'n' => 4]]],
    '__all__' => [['100 % closed.', null, null]],
]);
$wrong = Wire::open($details['one thing that is wrong'], $secrets, $id)[0];
check('one thing that is wrong', $wrong->details['errors'] === ['Closed.', 'closed', null]);
$rows = Wire::open($answers[0]['wire'], $secrets, $id)[0];
check('rows as arrays', Wire::plain($rows) === [['id' => 1, 'name' => 'Soup']]);
check('one row', (new Request((object) ['end' => ['get', [], new stdClass()]]))->result($rows)
    === ['id' => 1, 'name' => 'Soup']);
foreach (vectors('values') as $vector) {
    if ($vector['name'] === 'rows of a model') {
        check('rows inside rows', Wire::plain(Wire::decode(Wire::parsed($vector['wire']))) === [
            ['id' => 1, 'name' => 'Soup', 'station_id' => 2, 'station' => ['id' => 2],
                'tags' => [['id' => 5], ['id' => 6]]],
            ['id' => 2, 'name' => 'Tea', 'station_id' => null, 'station' => null, 'tags' => []],
        ]);
    }
}
foreach (vectors('values') as $vector) {
    if ($vector['name'] === 'a row by itself') {
        $value = Wire::decode(Wire::parsed($vector['wire']));
        check('a row by itself', Wire::plain($value) === ['id' => 1, 'name' => 'Soup']);
    }
}
foreach (vectors('bad_answers')['vectors'] as $vector) {
    check("bad_answers: {$vector['name']}", code_of(
        fn () => Wire::open($vector['wire'], $secrets, $id)
    ) === $vector['code']);
}
check('nobody listens', code_of(fn () => $dishes->count()) === 'Unavailable');

echo "$passed passed, $failed failed\n";
exit($failed ? 1 : 0);
