<?php
// Asks the service of the tests at $argv[2], by the client of $argv[1]; prints JSON, a line for each.
use Pgbackend\Rpc\{Client, Expr, Q, RemoteError, Tagged};

require $argv[1];

[, , $url, $first, $second] = $argv;
$client = new Client($url, 'k1', $first, 'chef', 30.0, 'php');
$dishes = $client->model('rpc_site.Dish');
$orders = $client->model('rpc_site.Order');

function say(string $what, mixed $value): void
{
    $flags = JSON_THROW_ON_ERROR | JSON_UNESCAPED_UNICODE | JSON_PRESERVE_ZERO_FRACTION;
    echo json_encode([$what, $value], $flags), "\n";
}

function code(string $what, callable $call): void
{
    try {
        $call();
        say($what, null);
    } catch (RemoteError $error) {
        say($what, [$error->errorCode, $error->sealed]);
    }
}

$names = fn ($rows) => array_column($rows->order_by('name')->rows(), 'name');

// Reads.
say('filter', $names($dishes->filter(price__lt: 10, station__name: 'grill')));
say('exclude', $names($dishes->exclude(station: null)));
say('or', $names($dishes->filter(Q::of(price__lt: 2)->or(Q::of(name: 'tea')))));
say('not', $names($dishes->filter(Q::of(name: 'tea')->not())));
say('in', $names($dishes->filter(name__in: ['tea', 'ærø ☃'])));
say('slice', $dishes->order_by('-price')->slice(0, 2)->values('name', 'price')->rows());
say('flat', $dishes->order_by('name')->values_list('name', flat: true)->rows());
say('count', $dishes->count());
say('exists', [$dishes->filter(name: 'tea')->exists(), $dishes->filter(name: 'none')->exists()]);
say('aggregate', $dishes->aggregate(most: Expr::agg('Max', 'price'), n: Expr::agg('Count', '*')));
say('annotate', $dishes->annotate(n: Expr::agg('Count', 'orders'))->filter(n__gt: 0)->values('name', 'n')->rows());
$dish = $dishes->select_related('station')->prefetch_related('labels')->get(name: 'soup');
say('row', [$dish['station']['name'], array_column($dish['labels'], 'word'), $dish['data']]);
say('no station', $dishes->select_related('station')->get(name: 'tea')['station']);
say('first', $dishes->order_by('price')->first()['name']);
say('nothing', $dishes->filter(name: 'none')->first());
say('subquery', $names($dishes->filter(pk__in: $orders->values('dish'))));
say('dates', $dishes->dates('created', 'year')->rows());
say('in_bulk', array_column($dishes->in_bulk([$dish['id']]), 'name'));

// Writes.
$pie = $dishes->create(
    name: 'pie',
    price: Tagged::decimal('9.50'),
    station: $dish['station_id'],
    data: Tagged::json(['a' => [1.5, null, 'x']]),
    created: new DateTimeImmutable('2026-01-02T03:04:05.000006+03:00'),
);
say('create', [$pie['name'], $pie['price'], $pie['data'], $pie['created']->format('c u')]);
$pies = $dishes->filter(pk: $pie['id']);
say('update', $pies->update(price: Expr::op('*', Expr::f('price'), 2)));
say('updated', $pies->get()['price']);
say('get_or_create', [$dishes->get_or_create(name: 'pie')[1], $dishes->get_or_create(name: 'jam')[1]]);
say('bulk_create', count($dishes->bulk_create([['name' => 'a1'], ['name' => 'a2']])));
say('labels', $dishes->related_add($pie['id'], 'labels', [$dish['labels'][0]['id']]));
say('renamed', $dishes->call('rename', 'jam', new: 'marmalade')['name']);
$inside = $dishes->call('inside', 'soup');
say('inside', [$inside['pair'][0]['name'], count($inside['twice']), $inside['first']['count']]);
try {
    $dishes->call('refuse', 'Closed.');
} catch (RemoteError $error) {
    say('refused', $error->details['messages']);
}
try {
    $dishes->create(name: '', price: Tagged::decimal('-1'));
} catch (RemoteError $error) {
    $wrong = $error->details['errors'];
    say('wrong', [$wrong['name'][0][1], $wrong['price'][0][1], $wrong['price'][0][2]['limit_value']]);
}
say('total', $dishes->call('total_price', 'soup', factor: 3));
$waiter = $client->model('rpc_site.Waiter')->get(login: 'ada');
[$cake, $order] = $client->send([
    $dishes->request('create', name: 'cake', price: Tagged::decimal('3.00')),
    $orders->request('create', dish: Expr::ref(0, 'id'), waiter: $waiter['id'], count: 2),
], atomic: true);
say('refers', $order['dish_id'] === $cake['id']);
code('atomic', fn () => $client->send([
    $dishes->request('create', name: 'lost'),
    $dishes->request('create', name: 'soup'),
], atomic: true));
$twice = fn () => $client->send([$dishes->request('create', name: 'once')], idempotency: 'once')[0]['id'];
say('twice', $twice() === $twice());
say('delete', $dishes->filter(name__startswith: 'a')->filter(name__in: ['a1', 'a2'])->delete()[0]);

// Each kind of value, there and back.
$kinds = $client->model('rpc_site.Kinds');
$row = $kinds->create();
$shown = array_map(
    fn ($value) => $value instanceof DateTimeImmutable ? $value->format('c u') : $value,
    array_diff_key($row, ['binary' => 0, 'infinite' => 0]),
);
say('kinds', $shown);
say('bytes', [bin2hex($row['binary']), is_infinite($row['infinite'])]);
$kinds->filter(pk: $row['id'])->update(
    text: 'ærø ☃ 𝄞',
    integer: PHP_INT_MAX,
    real: 0.1,
    uuid: Tagged::uuid('12345678-1234-5678-1234-567812345678'),
    span: Tagged::microseconds(-1),
    day: Tagged::date('2017-01-01'),
    binary: Tagged::bytes("\x00\xff"),
);
$row = $kinds->get(pk: $row['id']);
say('sent', [$row['text'], $row['integer'], $row['real'], $row['uuid'], $row['span'], $row['day'], bin2hex($row['binary'])]);

// What is refused.
code('unknown', fn () => $dishes->get(name: 'none'));
code('many', fn () => $dishes->get());
code('invalid', fn () => $dishes->create(name: 'nothing'));
code('taken', fn () => $dishes->filter(name: 'pie')->update(name: 'soup'));
code('hidden', fn () => $dishes->filter(recipe: 'secret')->rows());
code('hidden model', fn () => $client->model('rpc_site.Hidden')->rows());
code('method', fn () => $dishes->call('burn'));
$ada = new Client($url, 'k2', $second);
say('own orders', $ada->model('rpc_site.Order')->count());
code('another', fn () => (new Client($url, 'k2', $second, 'chef'))->model('rpc_site.Order')->count());
code('wrong key', fn () => (new Client($url, 'k1', strrev($first)))->model('rpc_site.Dish')->count());
code('nobody', fn () => (new Client('http://127.0.0.1:1/', 'k1', $first))->model('rpc_site.Dish')->count());
